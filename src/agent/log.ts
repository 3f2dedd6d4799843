/** The agent's log: pino, one JSON object a line on standard error, without secrets. */
import { pino, type DestinationStream, type Logger } from 'pino';

export type { Logger } from 'pino';

export interface LogOptions {
  /** The least that is logged. */
  level: string;
  /** `json`: one object a line; `text`: for people. */
  format: 'json' | 'text';
  /** The agent's name, in every line. */
  name?: string;
}

/** Names of fields that are never written out, at the top and up to three levels down. */
const SECRETS = ['token', 'authorization', 'secret', 'key'];
const redacted = SECRETS.flatMap((field) => ['', '*.', '*.*.', '*.*.*.'].map((depth) => `${depth}${field}`));

/**
 * Makes a logger. Lines are written at once, not in the background: what was logged before a crash is what explains
 * it. Nothing on a fault's way may log.
 */
export function createLogger(options: LogOptions, destination?: DestinationStream): Logger {
  const out = destination ?? pino.destination({ dest: 2, sync: true });
  return pino(
    {
      level: options.level,
      base: { pid: process.pid, ...(options.name === undefined ? {} : { agent: options.name }) },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      redact: { paths: redacted, censor: '[secret]' },
    },
    options.format === 'json' ? out : { write: (line: string) => out.write(asText(line)) },
  );
}

/** `12:30:01.123 WARN message key=value …`, from a line of JSON. */
function asText(line: string): string {
  let record: Record<string, unknown>;
  try {
    record = JSON.parse(line) as Record<string, unknown>;
  } catch {
    return line;
  }
  const { time, level, msg, err, ...rest } = record;
  const error = err as { message?: string; stack?: string } | undefined;
  // who writes is known to whoever reads text
  const fields = Object.entries(rest)
    .filter(([key]) => key !== 'pid' && key !== 'agent')
    .map(([key, value]) => {
      return ` ${key}=${typeof value === 'string' ? value : JSON.stringify(value)}`;
    });
  const clock = String(time).slice(11, 23);
  const head = `${clock} ${String(level).toUpperCase().padEnd(5)} ${typeof msg === 'string' ? msg : ''}${fields.join('')}`;
  return `${head}${error === undefined ? '' : `\n  ${error.stack ?? error.message ?? ''}`}\n`;
}

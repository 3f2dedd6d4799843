/** The CLI as a real child process. */
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { Test } from 'tap';

const main = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));

export interface Finished {
  code: number | null;
  stdout: string;
  stderr: string;
}

export interface Cli {
  /** Resolves when the process has ended and its output is read. */
  finished: Promise<Finished>;
  /** Resolves once standard error holds a match. */
  says(pattern: RegExp): Promise<void>;
  /** Standard error so far. */
  said(): string;
  kill(signal: NodeJS.Signals): void;
}

/** Starts `pagetide ARGS`; it is killed with the test if it hasn't ended. The environment names no agent but by `env`. */
export function startCli(t: Test, args: string[], env: Record<string, string> = {}): Cli {
  // an agent of the machine must not be found
  const own = { PAGETIDE_AGENT: '', XDG_RUNTIME_DIR: '' };
  const child = spawn(process.execPath, [main, ...args], {
    env: { ...process.env, ...own, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let stdout = '';
  let stderr = '';
  const waiting = new Set<() => void>();
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
    for (const look of waiting) look();
  });
  const finished = new Promise<Finished>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code) => resolve({ code, stdout, stderr }));
  });
  t.teardown(() => {
    child.kill('SIGKILL');
    return finished.then(() => undefined);
  });
  return {
    finished,
    kill: (signal) => child.kill(signal),
    said: () => stderr,
    says: (pattern) =>
      Promise.race([
        new Promise<void>((resolve) => {
          const look = () => {
            if (!pattern.test(stderr)) return;
            waiting.delete(look);
            resolve();
          };
          waiting.add(look);
          look();
        }),
        finished.then(({ code }) => {
          if (!pattern.test(stderr)) throw new Error(`ended with ${code} before it said ${pattern}: ${stderr}`);
        }),
      ]),
  };
}

/** Runs `pagetide ARGS` to its end. */
export const runCli = (t: Test, args: string[], env?: Record<string, string>): Promise<Finished> =>
  startCli(t, args, env).finished;

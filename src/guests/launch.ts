/**
 * Starts VMMs so that they belong to nobody: they outlive any death of the agent, and Node's handling of children
 * doesn't meet them. The work is done by the native program `pagetide-launch`; under systemd it runs in a scope of its
 * own, as otherwise stopping the agent's unit would end every guest with it.
 */
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { accessSync, constants, existsSync } from 'node:fs';
import { delimiter, isAbsolute, join } from 'node:path';
import { PagetideError } from '../errors.ts';
import { nativeProgram } from '../memory/native.ts';
import type { ProcessIdentity } from './process.ts';

export interface LaunchOptions {
  /** A program: a path, or a name to be found on PATH. */
  command: string;
  args: string[];
  /** Its output is appended here; made with mode 0600 where it isn't there. */
  log: string;
  /** Working folder; the caller's own otherwise. */
  cwd?: string;
  /** Names the systemd scope, e.g. the guest's name. */
  name?: string;
  /** Added to the environment of launcher and program. */
  env?: Record<string, string>;
}

/** How long the launcher may take: it forks twice and execs. */
const LAUNCH_TIMEOUT_MS = 20_000;

/** The launcher's own arguments. */
export function launcherArgv(options: LaunchOptions): string[] {
  const cwd = options.cwd === undefined ? [] : ['--cwd', options.cwd];
  return ['--log', options.log, ...cwd, '--', options.command, ...options.args];
}

/** A systemd unit's name made from a guest's: other characters than unit names may have become `_`. */
export function scopeUnit(name: string, unique: string): string {
  return `pagetide-${name.replace(/[^A-Za-z0-9:_.-]/g, '_').slice(0, 128)}-${unique}`;
}

/** The command that runs `argv` in a systemd scope of its own; users other than root have a systemd of their own. */
export function scopeArgv(unit: string, root: boolean, argv: string[]): string[] {
  const manager = root ? [] : ['--user'];
  return ['systemd-run', ...manager, '--scope', '--quiet', '--collect', `--unit=${unit}`, '--', ...argv];
}

function onPath(program: string): boolean {
  const folders = (process.env.PATH ?? '').split(delimiter).filter((folder) => isAbsolute(folder));
  return folders.some((folder) => {
    try {
      accessSync(join(folder, program), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

/** Whether this machine was booted with systemd and can be asked for scopes. */
function hasSystemd(): boolean {
  return existsSync('/run/systemd/system') && onPath('systemd-run');
}

interface Outcome {
  failed: boolean;
  stdout: string;
  stderr: string;
}

function run(argv: string[], env: Record<string, string>): Promise<Outcome> {
  return new Promise((resolve) => {
    const options = {
      timeout: LAUNCH_TIMEOUT_MS,
      encoding: 'utf8',
      maxBuffer: 1 << 20,
      env: { ...process.env, ...env },
    } as const;
    execFile(argv[0]!, argv.slice(1), options, (error, stdout, stderr) => {
      const text = error !== null && stderr.trim() === '' ? error.message : stderr.trim();
      resolve({ failed: error !== null, stdout, stderr: text });
    });
  });
}

function parseIdentity(text: string): ProcessIdentity | undefined {
  try {
    const { pid, startTime } = JSON.parse(text) as Partial<Record<string, unknown>>;
    if (!Number.isSafeInteger(pid) || !Number.isSafeInteger(startTime)) return undefined;
    return { pid: pid as number, startTime: startTime as number };
  } catch {
    return undefined;
  }
}

/**
 * Starts a program detached, and resolves once it runs (its image was executed; what it then does is its own matter).
 * @throws PT_VMM_FAILED where it can't be started: no such program, no permission, log not writable
 */
export async function launchDetached(options: LaunchOptions): Promise<ProcessIdentity> {
  const argv = [nativeProgram('pagetide-launch'), ...launcherArgv(options)];
  const { env = {} } = options;
  let outcome: Outcome | undefined;
  if (hasSystemd()) {
    const unit = scopeUnit(options.name ?? 'guest', randomBytes(4).toString('hex'));
    outcome = await run(scopeArgv(unit, process.getuid?.() === 0, argv), env);
    // systemd-run itself failed, e.g. there is no user manager to ask: the launcher never ran, so nothing can be
    // started twice. The guest then shares the agent's scope, which is better than no guest.
    if (outcome.failed && !/^pagetide-launch:/m.test(outcome.stderr)) outcome = undefined;
  }
  outcome ??= await run(argv, env);
  const identity = outcome.failed ? undefined : parseIdentity(outcome.stdout);
  if (identity !== undefined) return identity;
  throw new PagetideError('PT_VMM_FAILED', outcome.stderr === '' ? 'the launcher said nothing' : outcome.stderr, {
    hint: 'Check that the program exists and may be executed, and that the log can be written.',
  });
}

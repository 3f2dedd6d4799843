/** Names and paths that come from outside and end up in the file system: what is allowed, and how long. */
import { join } from 'node:path';
import { PagetideError } from '../errors.ts';

/** Guests and agents: they become file names and parts of Unix socket paths, so no dots, slashes or capitals. */
export const NAME_PATTERN = /^[a-z0-9][a-z0-9-]{0,62}$/;
/** Names a migration on both sides. */
export const MIGRATION_PATTERN = /^[0-9a-f]{16}$/;
/** Bytes that fit into `sockaddr_un.sun_path` beside its terminating zero. */
export const MAX_SOCKET_PATH = 107;

/** Throws `PT_BAD_ARGUMENT` unless `name` may name a guest. */
export function checkGuestName(name: string): string {
  if (NAME_PATTERN.test(name)) return name;
  throw new PagetideError('PT_BAD_ARGUMENT', `"${name.slice(0, 80)}" cannot be a guest's name`, {
    hint: 'Small letters, digits and dashes, 63 at most, beginning with a letter or digit.',
  });
}

/**
 * Throws `PT_BAD_CONFIG` where `path` is too long for a Unix socket. The kernel would refuse it only at bind, with
 * an error that doesn't say why; Node cuts it off without any.
 */
export function checkSocketPath(path: string, what: string): string {
  const bytes = Buffer.byteLength(path);
  if (bytes <= MAX_SOCKET_PATH) return path;
  throw new PagetideError(
    'PT_BAD_CONFIG',
    `${what}: ${path} has ${bytes} bytes, a Unix socket's path ${MAX_SOCKET_PATH} at most`,
    {
      hint: 'Use a shorter --state folder, or set runtimeFolder to a short one, e.g. /run/pagetide.',
    },
  );
}

/** The control socket below an agent's runtime folder. */
export function controlSocket(runtimeFolder: string): string {
  return join(runtimeFolder, 'control.sock');
}

/** Where an agent keeps its state unless told otherwise. */
export function defaultState(env: NodeJS.ProcessEnv = process.env, uid = process.getuid?.() ?? 0): string {
  if (uid === 0) return '/var/lib/pagetide';
  const home = env['XDG_STATE_HOME'] ?? join(env['HOME'] ?? '/', '.local/state');
  return join(home, 'pagetide');
}

/** Where the CLI looks for the control socket of this machine's agent, in this order. */
export function defaultControlSockets(env: NodeJS.ProcessEnv = process.env, uid = process.getuid?.() ?? 0): string[] {
  const runtime = env['XDG_RUNTIME_DIR'];
  return [
    ...(runtime === undefined || runtime === '' ? [] : [controlSocket(join(runtime, 'pagetide'))]),
    ...(uid === 0 ? [controlSocket('/run/pagetide')] : []),
    controlSocket(defaultState(env, uid)),
  ];
}

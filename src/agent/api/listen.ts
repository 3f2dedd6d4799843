/** The agent's control socket: there only when it is ready, never taken from someone who still listens. */
import { chmod, lstat, rename, stat, unlink } from 'node:fs/promises';
import { connect } from 'node:net';
import { dirname } from 'node:path';
import type { FastifyInstance } from 'fastify';
import { PagetideError } from '../../errors.ts';
import { checkSocketPath } from '../names.ts';

/**
 * Listens on Unix socket `path`, mode 0600. The socket is bound under another name and moved into place, so that it
 * appears ready and with its final permissions; `app.close()` removes it again.
 *
 * Throws `PT_SOCKET_IN_USE` where someone listens or the path is no socket, `PT_NO_PERMISSION`, `PT_IO`, and
 * `PT_BAD_CONFIG` where it is too long. Two agents that start at once are kept apart by the state folder's lock.
 */
export async function listenControl(app: FastifyInstance, path: string): Promise<void> {
  const early = `${path}~`;
  checkSocketPath(early, 'control socket');
  // bind reports a missing folder as EACCES: libuv translates ENOENT
  await stat(dirname(path)).catch((cause: unknown) => {
    throw refused(path, cause);
  });
  await removeStale(path);
  await removeStale(early);

  let inode: bigint | undefined;
  const remove = async () => {
    if (inode === undefined) return;
    const now = await lstat(path, { bigint: true }).catch(() => undefined);
    // somebody else's by now: leave it
    if (now?.ino === inode) await unlink(path).catch(() => undefined);
  };
  app.addHook('onClose', remove);
  await app.ready();
  try {
    await app.listen({ path: early, listenTextResolver: () => `control socket ${path}` });
    await chmod(early, 0o600);
    inode = (await lstat(early, { bigint: true })).ino;
    await rename(early, path);
  } catch (cause) {
    await unlink(early).catch(() => undefined);
    throw refused(path, cause);
  }
}

async function removeStale(path: string): Promise<void> {
  const found = await lstat(path).catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw refused(path, error);
  });
  if (found === undefined) return;
  if (!found.isSocket()) {
    throw new PagetideError('PT_SOCKET_IN_USE', `${path} is in the way: it is no socket`, {
      hint: 'Move that file away; nothing was changed.',
    });
  }
  if (await answers(path)) throw new PagetideError('PT_SOCKET_IN_USE', `another process listens on ${path}`);
  await unlink(path).catch((cause: unknown) => {
    if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') throw refused(path, cause);
  });
}

/** Whether someone listens; a dead process's socket refuses at once, a busy one's backlog may be full (EAGAIN). */
function answers(path: string): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'ECONNREFUSED' || error.code === 'ENOENT') resolve(false);
      else if (error.code === 'EAGAIN') resolve(true);
      else reject(refused(path, error));
    });
  });
}

function refused(path: string, cause: unknown): PagetideError {
  if (cause instanceof PagetideError) return cause;
  const code = (cause as NodeJS.ErrnoException).code;
  if (code === 'EADDRINUSE')
    return new PagetideError('PT_SOCKET_IN_USE', `another process listens on ${path}`, { cause });
  const permission = code === 'EACCES' || code === 'EPERM';
  return new PagetideError(permission ? 'PT_NO_PERMISSION' : 'PT_IO', `cannot listen on ${path}`, {
    cause,
    ...(permission ? { hint: 'Run the agent as the user who owns the --state folder.' } : {}),
  });
}

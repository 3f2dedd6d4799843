/**
 * One agent, one state folder: a lock that vanishes with the process that holds it, however that ends.
 *
 * Node has no flock, and a file with a pid in it can't be told stale without a race. So the lock is a Unix socket in
 * the folder on which its holder listens:
 *
 *   bind and listen on `new-X` → rename to `lock-X` → connect to every other `lock-*` → none answers: held
 *
 * Why it is free of races: a `lock-*` listens from the moment that it has this name, so one that refuses a connection
 * belongs to a process that is gone, for good, and may be removed. Of two that start at once, the one that renames
 * later looks later, and finds the other. Should both find each other, both withdraw and try again after a random
 * while; one that holds the lock says so and is not waited for.
 */
import { randomBytes, randomInt } from 'node:crypto';
import { open, readdir, rename, rm, type FileHandle } from 'node:fs/promises';
import { createConnection, createServer, type Server } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import { asPagetideError, PagetideError } from '../errors.ts';

/** What the holder of a socket says to whoever connects. */
const HELD = 'H';
const TRYING = 'T';
/** Attempts when several start at once. */
const ATTEMPTS = 20;
/** Milliseconds that a listening process gets to say what it is; silent ones (stopped, busy) count as holders. */
const ANSWER_MS = 2000;

export interface StateLock {
  /** Idempotent. */
  release(): Promise<void>;
}

/** Locks `folder` (which exists). Rejects with `PT_STATE_IN_USE` when a living process has it, this one included. */
export async function lockState(folder: string): Promise<StateLock> {
  // socket paths are bounded to 107 bytes: through the open folder they are short, wherever it is
  let directory: FileHandle;
  try {
    directory = await open(folder, 'r');
  } catch (error) {
    throw asPagetideError(error, 'PT_IO', `can't open the state folder ${folder}`);
  }
  try {
    for (let attempt = 1; ; attempt++) {
      const lock = await attemptLock(folder, directory);
      if (lock !== undefined) return lock;
      if (attempt === ATTEMPTS) throw inUse(folder);
      await delay(randomInt(5, 30 * attempt));
    }
  } catch (error) {
    await directory.close();
    throw error instanceof PagetideError
      ? error
      : asPagetideError(error, 'PT_IO', `can't lock the state folder ${folder}`);
  }
}

/** Undefined: somebody else tries at this moment as well. */
async function attemptLock(folder: string, directory: FileHandle): Promise<StateLock | undefined> {
  const at = (name: string): string => `/proc/self/fd/${directory.fd}/${name}`;
  const id = randomBytes(6).toString('hex');
  let says = TRYING;
  const server = createServer((socket) => {
    socket.on('error', () => undefined); // a prober that is gone again
    socket.end(says);
  });
  await listen(server, at(`new-${id}`));
  const mine = `lock-${id}`;
  const release = async (): Promise<void> => {
    // the name goes first: from then on nobody can find a socket that doesn't listen any more
    await rm(at(mine), { force: true });
    await new Promise<void>((resolve) => server.close(() => resolve()));
  };
  try {
    await rename(at(`new-${id}`), at(mine));
    for (const name of await readdir(folder)) {
      if (!name.startsWith('lock-') || name === mine) continue;
      const answer = await probe(at(name));
      if (answer === HELD) throw inUse(folder);
      if (answer === TRYING) {
        await release();
        return undefined;
      }
      await rm(at(name), { force: true });
    }
  } catch (error) {
    await release();
    throw error;
  }
  says = HELD;
  server.unref();
  let released: Promise<void> | undefined;
  return { release: () => (released ??= release().finally(() => directory.close())) };
}

function listen(server: Server, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen({ path }, () => {
      server.off('error', reject);
      resolve();
    });
  });
}

/** What the process at a socket says; undefined when there is none. */
function probe(path: string): Promise<string | undefined> {
  return new Promise((resolve, reject) => {
    const socket = createConnection({ path });
    let text = '';
    let connected = false;
    socket.setTimeout(ANSWER_MS, () => {
      socket.destroy();
      resolve(HELD);
    });
    socket.on('connect', () => (connected = true));
    socket.on('data', (data) => (text += data.toString('latin1')));
    // one that closes without a word has just withdrawn, or is about to end: look again
    socket.on('end', () => resolve(text === '' ? TRYING : text.slice(0, 1)));
    socket.on('error', (error: NodeJS.ErrnoException) => {
      // reset: it listened a moment ago, and withdrew before it took this connection
      if (connected || error.code === 'EAGAIN' || error.code === 'ECONNRESET') resolve(TRYING);
      else if (error.code === 'ECONNREFUSED' || error.code === 'ENOENT') resolve(undefined);
      else reject(error);
    });
  });
}

function inUse(folder: string): PagetideError {
  return new PagetideError('PT_STATE_IN_USE', `another agent uses the state folder ${folder}`);
}

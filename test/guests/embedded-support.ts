/** Embedded guests for tests: everything that is made here is gone when the test ends, also when it fails. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { Readable, Writable } from 'node:stream';
import type { Test } from 'tap';
import { PagetideError } from '../../src/errors.ts';
import { GuestControl } from '../../src/guests/control.ts';
import { nativeProgram } from '../../src/memory/native.ts';

export const PAGE = 4096;

/** A folder on tmpfs that goes with the test. */
export function scratch(t: Test): string {
  const folder = mkdtempSync('/dev/shm/pt-test-');
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** Resolves when `condition` holds; what it looks at is another process, so it has to be asked again and again. */
export async function until(
  what: string,
  condition: () => Promise<boolean> | boolean,
  timeoutMs = 20_000,
): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (!(await condition())) {
    if (performance.now() > deadline) throw new Error(`waited ${timeoutMs} ms in vain for: ${what}`);
    await delay(5);
  }
}

export interface Guest {
  child: ChildProcess;
  control: GuestControl;
  path: string;
  stderr: () => string;
}

/** Starts the program as a child of the test, and waits until it answers. */
export async function startGuest(t: Test, path: string, args: string[]): Promise<Guest> {
  const guest = spawnGuest(t, path, args);
  await until('the guest answers', async () => {
    if (guest.child.exitCode !== null) throw new Error(`the guest ended: ${guest.stderr()}`);
    try {
      await guest.control.status();
      return true;
    } catch (error) {
      if (error instanceof PagetideError && error.code === 'PT_VMM_GONE') return false;
      throw error;
    }
  });
  return guest;
}

export function spawnGuest(t: Test, path: string, args: string[]): Guest {
  const child = spawn(nativeProgram('pagetide-guest'), ['--control', path, ...args], {
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let text = '';
  child.stderr.setEncoding('utf8').on('data', (piece: string) => (text += piece));
  const control = new GuestControl(path);
  t.teardown(async () => {
    control.close();
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill('SIGKILL');
    await once(child, 'exit');
  });
  return { child, control, path, stderr: () => text.trim() };
}

/** A sink that keeps everything. */
export class Collected extends Writable {
  readonly pieces: Buffer[] = [];
  override _write(piece: Buffer, _encoding: string, done: () => void): void {
    this.pieces.push(piece);
    done();
  }
  get bytes(): Buffer {
    return Buffer.concat(this.pieces);
  }
}

export async function saved(control: GuestControl): Promise<Buffer> {
  const sink = new Collected();
  await control.save(sink);
  return sink.bytes;
}

export const streamOf = (bytes: Uint8Array): Readable => Readable.from([bytes]);

export function readFrame(path: string, frame: number): Buffer {
  const page = Buffer.alloc(PAGE);
  const fd = openSync(path, 'r');
  readSync(fd, page, 0, PAGE, frame * PAGE);
  closeSync(fd);
  return page;
}

/** Writes behind the guest's back. */
export function writeFrame(path: string, frame: number, page: Uint8Array): void {
  const fd = openSync(path, 'r+');
  writeSync(fd, page, 0, PAGE, frame * PAGE);
  closeSync(fd);
}

/** Sends raw bytes to a control socket; resolves to everything that came until the other side closed. */
export async function converse(t: Test, path: string, bytes: string | Uint8Array, end = false): Promise<string> {
  const socket = connect(path);
  t.teardown(() => socket.destroy());
  let text = '';
  socket.setEncoding('utf8').on('data', (piece: string) => (text += piece));
  // The guest may close while this still writes.
  socket.on('error', () => undefined);
  socket.write(bytes);
  if (end) socket.end();
  await once(socket, 'close');
  return text;
}

/** Memory arguments of a small guest. */
export function smallGuest(folder: string, more: string[] = []): { ram: string; args: string[] } {
  const ram = join(folder, 'ram');
  return { ram, args: ['--memory-size', '4M', '--memory-file', ram, ...more] };
}

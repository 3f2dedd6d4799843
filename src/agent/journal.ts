/**
 * The agent's journal: what has to be known again after the agent died at any moment.
 *
 *   batch := header payload "\n"
 *   header := length ' ' crc32(payload) ' ' crc32(length ' ' crc32(payload) ' ') ' '       each 8 hex digits
 *   payload := {"version":1,"records":[…]} as JSON, one line
 *
 * Records that wait at the same time are written as one batch and made durable by one fdatasync (group commit). A
 * batch is written only when the one before is durable, so only the last one can be torn by a crash, and it is whole
 * or void by its checksum. That is what lets `open` tell a torn tail (dropped: nobody was told that it is durable)
 * from damage (refused: a lost `handing over` or `owner` could let a guest run twice):
 *
 *  - torn: the file ends before the batch does, or the batch holds NUL bytes, which JSON never does but a file system
 *    leaves where it extended a file and lost the data;
 *  - damaged: anything else, or anything with a readable batch behind it.
 */
import { constants } from 'node:fs';
import { chmod, mkdir, open, readFile, rename, rm, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import { asPagetideError, PagetideError } from '../errors.ts';
import { decodeBatch, encodeBatch, type JournalRecord } from './journal_records.ts';
import { lockState, type StateLock } from './state_lock.ts';

export * from './journal_records.ts';

const NAME = 'journal';
const TEMPORARY = 'journal.new';
/** Bytes of a header: three numbers of 8 hex digits, a space behind each. */
const HEADER = 27;

interface Waiting {
  record: JournalRecord;
  resolve: () => void;
  reject: (error: PagetideError) => void;
}

/** One agent's journal. Holds the lock of the state folder while it is open. */
export class Journal {
  readonly folder: string;
  #lock: StateLock;
  #file: FileHandle;
  /** Bytes that are durable; the file is never longer, but for a write under way. */
  #length: number;
  #records: JournalRecord[];
  #waiting: Waiting[] = [];
  /** Writes and compactions, one after the other. Never rejects. */
  #work: Promise<void> = Promise.resolve();
  #scheduled = false;
  /** Set when it isn't known any more what the file holds. */
  #broken: PagetideError | undefined;
  #closed: Promise<void> | undefined;

  private constructor(folder: string, lock: StateLock, file: FileHandle, length: number, records: JournalRecord[]) {
    this.folder = folder;
    this.#lock = lock;
    this.#file = file;
    this.#length = length;
    this.#records = records;
  }

  /**
   * Opens the journal of a state folder, making both (0700, 0600) where they don't exist.
   *
   * Rejects with `PT_STATE_IN_USE` when another agent has the folder, `PT_IO` when the journal is damaged or can't be
   * read, `PT_STATE_VERSION` when a newer version wrote it. Nothing is changed then.
   */
  static async open(folder: string): Promise<Journal> {
    await io(`can't make the state folder ${folder}`, async () => {
      await mkdir(folder, { recursive: true, mode: 0o700 });
      await chmod(folder, 0o700); // it may have been there, and umask may have its own ideas
    });
    const lock = await lockState(folder);
    let file: FileHandle | undefined;
    try {
      return await io(`can't open the journal in ${folder}`, async () => {
        await rm(join(folder, TEMPORARY), { force: true });
        const path = join(folder, NAME);
        const { records, length, size } = parse(await readOrEmpty(path), path);
        file = await open(path, constants.O_RDWR | constants.O_CREAT, 0o600);
        await file.chmod(0o600);
        if (length < size) await file.truncate(length);
        await file.sync();
        await syncFolder(folder);
        return new Journal(folder, lock, file, length, records);
      });
    } catch (error) {
      await file?.close();
      await lock.release();
      throw error;
    }
  }

  /** Every record that is durable, in order. */
  records(): readonly JournalRecord[] {
    return this.#records;
  }

  /**
   * Resolves when the record is durable. Rejects with `PT_NO_SPACE` or `PT_IO`; the record may be found after a
   * restart all the same. After an error that leaves the file in doubt every later append is rejected too.
   */
  append(record: JournalRecord): Promise<void> {
    if (this.#closed !== undefined) return Promise.reject(new PagetideError('PT_IO', 'the journal is closed'));
    try {
      encodeBatch([record]); // refuses a bad one here, alone, and not the batch that it would end up in
    } catch (error) {
      return Promise.reject(asPagetideError(error));
    }
    return new Promise((resolve, reject) => {
      this.#waiting.push({ record, resolve, reject });
      if (this.#scheduled) return; // a batch not yet begun takes it along
      this.#scheduled = true;
      void this.#enqueue(() => this.#writeBatch());
    });
  }

  /**
   * Rewrites the journal with what `keep` returns of the durable records. A crash leaves the old or the new one,
   * whole. Appends wait meanwhile. Rejects with `PT_NO_SPACE` or `PT_IO`; the old journal stays in use then.
   */
  async compact(keep: (records: readonly JournalRecord[]) => readonly JournalRecord[]): Promise<void> {
    if (this.#closed !== undefined) throw new PagetideError('PT_IO', 'the journal is closed');
    await this.#enqueue(() => this.#rewrite([...keep(this.#records)]));
  }

  /** Waits for what is being written, then lets go of file and lock. Idempotent. */
  close(): Promise<void> {
    this.#closed ??= this.#work.then(async () => {
      await this.#file.close();
      await this.#lock.release();
    });
    return this.#closed;
  }

  #enqueue(work: () => Promise<void>): Promise<void> {
    const result = this.#work.then(work);
    this.#work = result.catch(() => undefined);
    return result;
  }

  async #writeBatch(): Promise<void> {
    const batch = this.#waiting;
    this.#waiting = [];
    this.#scheduled = false;
    try {
      if (this.#broken !== undefined) throw this.#broken;
      const bytes = frame(batch.map(({ record }) => record));
      await this.#write(bytes);
      this.#length += bytes.length;
      for (const { record } of batch) this.#records.push(record);
      for (const { resolve } of batch) resolve();
    } catch (error) {
      const failed = ioError(error, `can't write the journal in ${this.folder}`);
      for (const { reject } of batch) reject(failed);
    }
  }

  async #write(bytes: Buffer): Promise<void> {
    try {
      for (let done = 0; done < bytes.length;) {
        const { bytesWritten } = await this.#file.write(bytes, done, bytes.length - done, this.#length + done);
        done += bytesWritten;
      }
      await this.#file.datasync();
    } catch (error) {
      // Back to what is durable, so that the next batch follows a whole one. After an I/O error the kernel may have
      // dropped pages it calls clean: what the file holds is not known any more, and appending would build on sand.
      try {
        await this.#file.truncate(this.#length);
        await this.#file.datasync();
        if (!isNoSpace(error)) throw error;
      } catch (cause) {
        const message = `the journal in ${this.folder} failed and is not written any more`;
        this.#broken = new PagetideError('PT_IO', message, {
          cause,
          hint: 'Look after the disk, then restart the agent.',
        });
      }
      throw error;
    }
  }

  async #rewrite(records: JournalRecord[]): Promise<void> {
    if (this.#broken !== undefined) throw this.#broken;
    const temporary = join(this.folder, TEMPORARY);
    const bytes = records.length === 0 ? Buffer.alloc(0) : frame(records);
    let file: FileHandle | undefined;
    let renamed = false;
    try {
      file = await open(temporary, constants.O_RDWR | constants.O_CREAT | constants.O_TRUNC, 0o600);
      await file.writeFile(bytes);
      await file.sync();
      await rename(temporary, join(this.folder, NAME));
      renamed = true;
      await this.#file.close();
      this.#file = file;
      this.#length = bytes.length;
      this.#records = records;
      await syncFolder(this.folder);
    } catch (error) {
      const failed = ioError(error, `can't compact the journal in ${this.folder}`);
      if (renamed) {
        this.#broken = failed; // which of the two a power cut leaves is not known: an append could be lost with it
      } else {
        await file?.close();
        await rm(temporary, { force: true });
      }
      throw failed;
    }
  }
}

function frame(records: readonly JournalRecord[]): Buffer {
  const payload = Buffer.from(encodeBatch(records));
  const front = `${hex(payload.length)} ${hex(crc32(payload))} `;
  return Buffer.concat([Buffer.from(`${front}${hex(crc32(front))} `), payload, Buffer.from('\n')]);
}

function hex(value: number): string {
  return value.toString(16).padStart(8, '0');
}

interface Parsed {
  records: JournalRecord[];
  /** Bytes up to the end of the last whole batch. */
  length: number;
  size: number;
}

function parse(bytes: Buffer, path: string): Parsed {
  const records: JournalRecord[] = [];
  let offset = 0;
  while (offset < bytes.length) {
    const payload = payloadAt(bytes, offset);
    if (payload === undefined) {
      refuseDamage(bytes, offset, path);
      break;
    }
    records.push(...decodeBatch(payload.toString(), `${path}, byte ${offset}`));
    offset += HEADER + payload.length + 1;
  }
  return { records, length: offset, size: bytes.length };
}

/** The payload of a whole batch at `offset`; undefined when there is none. */
function payloadAt(bytes: Buffer, offset: number): Buffer | undefined {
  const header = headerAt(bytes, offset);
  if (header === undefined) return undefined;
  const begin = offset + HEADER;
  const end = begin + header.length;
  if (end >= bytes.length || bytes[end] !== 0x0a) return undefined;
  const payload = bytes.subarray(begin, end);
  return crc32(payload) === header.crc ? payload : undefined;
}

function headerAt(bytes: Buffer, offset: number): { length: number; crc: number } | undefined {
  const text = bytes.toString('latin1', offset, offset + HEADER);
  const match = /^([0-9a-f]{8}) ([0-9a-f]{8}) ([0-9a-f]{8}) $/.exec(text);
  if (match === null || hex(crc32(text.slice(0, 18))) !== match[3]) return undefined;
  return { length: Number.parseInt(match[1]!, 16), crc: Number.parseInt(match[2]!, 16) };
}

/** Throws `PT_IO` unless what begins at `offset` can be the torn last batch. */
function refuseDamage(bytes: Buffer, offset: number, path: string): void {
  const rest = bytes.subarray(offset);
  let behind = false;
  for (let at = rest.indexOf(0x0a); at >= 0 && !behind; at = rest.indexOf(0x0a, at + 1)) {
    behind = payloadAt(rest, at + 1) !== undefined;
  }
  const header = headerAt(rest, 0);
  const short = rest.length < HEADER || (header !== undefined && rest.length < HEADER + header.length + 1);
  if (!behind && (short || rest.includes(0))) return;
  const message = `${path} is damaged at byte ${offset}: ${rest.length} bytes there can't be read`;
  const hint =
    'Do not delete it: it says which guests may run here. Restore it, or see docs/ownership.md, A lost journal.';
  throw new PagetideError('PT_IO', message, { hint });
}

async function readOrEmpty(path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return Buffer.alloc(0);
    throw error;
  }
}

/** Makes names in a folder durable. */
async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

function isNoSpace(error: unknown): boolean {
  const { code } = error as NodeJS.ErrnoException;
  return code === 'ENOSPC' || code === 'EDQUOT';
}

function ioError(error: unknown, message: string): PagetideError {
  return asPagetideError(error, isNoSpace(error) ? 'PT_NO_SPACE' : 'PT_IO', message);
}

async function io<T>(message: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw ioError(error, message);
  }
}

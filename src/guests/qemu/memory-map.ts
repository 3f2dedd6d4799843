/** Finds guest memory in QEMU's address space, from /proc/PID/maps. */
import { readFile, stat } from 'node:fs/promises';
import { PagetideError } from '../../errors.ts';
import type { MemoryRegion } from '../../memory/native.ts';
import type { MemoryFile } from '../driver.ts';

/** One line of /proc/PID/maps that has a file behind it; neighbours that continue each other are joined. */
export interface MappedRange {
  /** Host address, bytes; below 2^47, so exact as a number. */
  start: number;
  end: number;
  /** e.g. `rw-s`. */
  permissions: string;
  /** Byte offset in the file. */
  offset: number;
  major: number;
  minor: number;
  inode: bigint;
}

/** @param text the whole of /proc/PID/maps */
export function parseMaps(text: string): MappedRange[] {
  const ranges: MappedRange[] = [];
  for (const match of text.matchAll(/^([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+)/gm)) {
    const [start, end, offset, major, minor] = [match[1], match[2], match[4], match[5], match[6]].map((hex) =>
      parseInt(hex!, 16),
    );
    const range = {
      start: start!,
      end: end!,
      permissions: match[3]!,
      offset: offset!,
      major: major!,
      minor: minor!,
      inode: BigInt(match[7]!),
    };
    if (range.inode === 0n) continue;
    const last = ranges.at(-1);
    if (last && continues(last, range)) last.end = range.end;
    else ranges.push(range);
  }
  return ranges;
}

function continues(a: MappedRange, b: MappedRange): boolean {
  return (
    a.end === b.start &&
    a.offset + (a.end - a.start) === b.offset &&
    a.inode === b.inode &&
    a.major === b.major &&
    a.minor === b.minor &&
    a.permissions === b.permissions
  );
}

/** Splits `st_dev` as Linux encodes it (glibc's gnu_dev_major and gnu_dev_minor). */
export function deviceNumbers(dev: bigint): { major: number; minor: number } {
  const major = ((dev >> 8n) & 0xfffn) | ((dev >> 32n) & ~0xfffn);
  const minor = (dev & 0xffn) | ((dev >> 12n) & ~0xffn);
  return { major: Number(major & 0xffffffffn), minor: Number(minor & 0xffffffffn) };
}

/** The ranges that map the file with these numbers (from a `stat` with `bigint: true`), by address. */
export function rangesOfFile(maps: readonly MappedRange[], dev: bigint, inode: bigint): MappedRange[] {
  const { major, minor } = deviceNumbers(dev);
  return maps.filter((range) => range.inode === inode && range.major === major && range.minor === minor);
}

/** Super-block options (`huge=always`, …) of the mount that device `dev` belongs to, from /proc/PID/mountinfo. */
export function mountOptions(mountinfo: string, dev: bigint): Record<string, string> {
  const { major, minor } = deviceNumbers(dev);
  const line = mountinfo.split('\n').find((entry) => entry.split(' ')[2] === `${major}:${minor}`);
  const options = line?.split(' - ')[1]?.split(' ')[2] ?? '';
  return Object.fromEntries(
    options.split(',').map((option) => {
      const [name = '', value = ''] = option.split('=', 2);
      return [name, value];
    }),
  );
}

/**
 * Where the process has each memory file, as regions of guest memory space, by offset. QEMU maps a RAM object once, in one piece,
 * however the machine then shows it to the guest (below and above 4 GiB, say); others map a file in several.
 *
 * @throws PT_VMM_GONE no such process; PT_MEMORY_FILE where not each byte of a file is mapped shared and writable, exactly once
 */
export async function findRegions(pid: number, files: readonly MemoryFile[]): Promise<MemoryRegion[]> {
  let maps: MappedRange[];
  try {
    maps = parseMaps(await readFile(`/proc/${pid}/maps`, 'utf8'));
  } catch (cause) {
    throw new PagetideError('PT_VMM_GONE', `cannot read the memory map of process ${pid}`, { cause });
  }
  const regions = await Promise.all(
    files.map(async (file) => {
      const about = await stat(file.path, { bigint: true }).catch((cause: unknown) => {
        throw new PagetideError('PT_MEMORY_FILE', `memory file ${file.path} is not there`, { cause });
      });
      const ranges = rangesOfFile(maps, about.dev, about.ino).sort((a, b) => a.offset - b.offset);
      let end = 0;
      const once = ranges.every((range) => {
        const follows = range.offset === end && range.permissions === 'rw-s';
        end += range.end - range.start;
        return follows;
      });
      if (!once || end !== file.size) {
        const found = ranges
          .map((r) => `${r.permissions} ${r.end - r.start} bytes at file offset ${r.offset}`)
          .join(', ');
        throw new PagetideError(
          'PT_MEMORY_FILE',
          `process ${pid} does not map ${file.path} once and whole: ${found || 'not at all'}`,
        );
      }
      return ranges.map(({ start, end: until, offset }) => ({
        hostAddress: start,
        size: until - start,
        offset: file.offset + offset,
      }));
    }),
  );
  return regions.flat();
}

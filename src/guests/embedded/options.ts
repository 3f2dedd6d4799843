/** What an operator, or another agent, may say about an embedded guest. */
import { z } from 'zod';
import { PagetideError } from '../../errors.ts';
import type { GuestDescription } from '../driver.ts';
import { checkOptions, numberOption, sizeOption } from '../options.ts';

/** Pages of the embedded guest, as the driver starts it. */
export const PAGE_SIZE = 4096;
const SMALLEST = 2 ** 20;
const LARGEST = 2 ** 42;

const threads = numberOption(1, 64).pipe(z.int());
const regions = numberOption(1, 64).pipe(z.int());
const rate = numberOption(0, 1e9);
const fraction = numberOption(0, 1);

const runShape = z.strictObject({
  /** Bytes, or text such as `256M`. */
  memory: sizeOption.default(256 * 2 ** 20),
  /** Pages a second that the workload writes, and reads and checks. */
  writeRate: rate.default(1000),
  readRate: rate.default(1000),
  /** Fraction of memory that the workload keeps to. */
  workingSet: fraction.default(0.25),
  /** Fraction of memory that is never touched at first. */
  zeroFraction: fraction.default(0.3),
  threads: threads.default(1),
  /** Mappings that memory is split into. */
  regions: regions.default(1),
  /** A folder whose files are the memory's content. */
  fillFrom: z.string().startsWith('/').default('/usr/lib'),
  seed: numberOption(0, Number.MAX_SAFE_INTEGER).pipe(z.int()).default(1),
});
export type EmbeddedRunOptions = z.output<typeof runShape>;

const attachShape = z.strictObject({
  /** The guest's control socket. */
  control: z.string().startsWith('/'),
});

const configShape = z.object({ threads: z.int().min(1).max(64), regions: z.int().min(1).max(64) });
/** What a destination must know beside the memory's size: the rest comes with the state. */
export type EmbeddedConfig = z.output<typeof configShape>;

function checkSize(size: number, code: 'PT_BAD_ARGUMENT' | 'PT_GUEST_UNSAFE'): void {
  if (size >= SMALLEST && size <= LARGEST && size % PAGE_SIZE === 0) return;
  throw new PagetideError(
    code,
    `embedded guest: ${size} bytes of memory: must be from 1M to 4T, in pages of ${PAGE_SIZE}`,
  );
}

/** @throws PT_BAD_ARGUMENT */
export function parseRunOptions(options: Record<string, unknown>): EmbeddedRunOptions {
  const parsed = checkOptions(runShape, options, 'embedded guest');
  checkSize(parsed.memory, 'PT_BAD_ARGUMENT');
  return parsed;
}

/** @throws PT_BAD_ARGUMENT */
export function parseAttachOptions(options: Record<string, unknown>): { control: string } {
  return checkOptions(attachShape, options, 'embedded guest');
}

/**
 * Checks a description that may come from another agent.
 * @throws PT_BAD_ARGUMENT, PT_GUEST_UNSAFE
 */
export function parseDescription(description: GuestDescription): EmbeddedConfig {
  if (description.driver !== 'embedded') {
    throw new PagetideError('PT_BAD_ARGUMENT', `a guest of driver ${description.driver} is no embedded guest`);
  }
  const { memory } = description;
  checkSize(memory.size, 'PT_GUEST_UNSAFE');
  const file = memory.files[0];
  const whole = memory.files.length === 1 && file?.size === memory.size && file.offset === 0;
  if (!whole || memory.pageSize !== PAGE_SIZE) {
    throw new PagetideError('PT_GUEST_UNSAFE', 'embedded guest: memory must be one shared file of 4096-byte pages', {
      hint: 'Start the guest with `pagetide guest run`, or with --memory-file.',
    });
  }
  return checkOptions(configShape, description.config, 'embedded guest');
}

/** The description of an embedded guest. */
export function describe(size: number, config: EmbeddedConfig): GuestDescription {
  return {
    driver: 'embedded',
    memory: { size, pageSize: PAGE_SIZE, files: [{ id: 'ram', size, offset: 0 }] },
    config: { threads: config.threads, regions: config.regions },
  };
}

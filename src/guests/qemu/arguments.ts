/**
 * QEMU's command line: what an operator gives to `guest run --driver qemu -- qemu-system-x86_64 …`, checked, and what
 * becomes of it on each host.
 *
 * The operator's words are kept as they are, placeholders and all, and travel with the guest; each host puts in its own
 * paths and appends what the driver needs:
 *
 *   {folder}      the guest's own folder there: sockets, logs
 *   {memory}/X    its memory file X there, on tmpfs
 *
 * Without `-object memory-backend-file` of the operator's own, RAM is one file that the driver adds ("pagetide-ram").
 */
import { basename, join } from 'node:path';
import { PagetideError } from '../../errors.ts';
import type { GuestPlace, MemoryFile } from '../driver.ts';
import { memoryPrefix } from '../marks.ts';

/** Id of the RAM object that the driver adds. */
export const RAM_ID = 'pagetide-ram';

/** `struct sockaddr_un` holds 108 bytes with the final zero. */
const MAX_SOCKET_PATH = 107;

/** Options that take no value, of QEMU 5 to 10; every other option takes the next word. */
const FLAGS = new Set(
  `h help version snapshot full-screen no-frame no-quit alt-grab ctrl-grab nographic sdl curses usb portrait S s
  singlestep one-insn-per-tb daemonize enable-kvm no-kvm no-fd-bootchk no-acpi no-hpet no-reboot no-shutdown nodefaults
  no-user-config mem-prealloc preconfig old-param semihosting win2k-hack show-cursor xen-attach xen-domid-restrict
  only-migratable enable-sync-profile nouserconfig`.split(/\s+/),
);

/** Options that take the guest out of the driver's hands. */
const REFUSED: Readonly<Record<string, string>> = {
  daemonize: 'Pagetide detaches QEMU itself',
  preconfig: 'the guest must start at once',
  S: 'Pagetide decides when the guest runs',
  incoming: 'Pagetide adds it where the guest is to arrive',
  loadvm: 'restore the snapshot first, then attach',
  'mem-path': 'Pagetide places guest RAM; leave it out',
  'mem-prealloc': 'it fills the destination with zero pages, which then never fault',
  snapshot: 'what the guest writes to disks would stay in a temporary file of this host',
  readconfig: 'options must be on the command line, where they can be checked',
  'add-fd': 'open files do not travel',
  runas: 'start the agent as that user instead',
  chroot: 'paths would mean something else inside',
  'xen-attach': 'Xen guests are not supported',
};

export interface QemuOption {
  name: string;
  value?: string;
}

/** A command line without its program. Never throws: the command lines of running QEMUs are read with it too. */
export function parseOptions(words: readonly string[]): QemuOption[] {
  const options: QemuOption[] = [];
  for (let at = 0; at < words.length; at++) {
    const word = words[at]!;
    const name = /^--?([A-Za-z].*)$/.exec(word)?.[1];
    if (name === undefined) {
      options.push({ name: '', value: word }); // a disk image
    } else if (FLAGS.has(name) || at + 1 === words.length) {
      options.push({ name });
    } else {
      options.push({ name, value: words[++at]! });
    }
  }
  return options;
}

/**
 * What on a command line stands against moving the guest and shows neither in QMP nor in /proc.
 * @param destination memory that is filled at start is harmless at a source
 */
export function optionObjections(options: readonly QemuOption[], destination: boolean): string[] {
  return options.flatMap(({ name, value = '' }) => {
    if (name === 'snapshot') return ['-snapshot keeps what the guest writes to disks in a temporary file of this host'];
    if (name === 'icount' && /(^|,)rr=/.test(value)) return ['record and replay (-icount rr=…) cannot be moved'];
    if (!destination) return [];
    if (name === 'mem-prealloc')
      return ['-mem-prealloc fills memory, so missing pages would be zeros instead of faults'];
    if (/^(overcommit|realtime)$/.test(name) && /(^|,)(mem-lock|mlock)(=(on|on-fault|yes|true|y)|,|$)/.test(value)) {
      return [`-${name} ${value} locks memory, so missing pages would be zeros instead of faults`];
    }
    return [];
  });
}

/** An operator's command line that has been checked. */
export interface CommandPlan {
  program: string;
  /** As given, placeholders not replaced, program left out. */
  words: string[];
  /** Memory objects, in the order of their ids; `file` is the name in the memory folder. */
  memory: { id: string; size: number; file: string }[];
  /** Whether the driver adds the RAM object. */
  addMemory: boolean;
  addDisplay: boolean;
}

/** @throws PT_BAD_ARGUMENT, PT_GUEST_UNSAFE */
export function planCommand(argv: readonly string[]): CommandPlan {
  const [program, ...words] = argv;
  if (program === undefined || !/^(qemu-system-x86_64|qemu-kvm)$/.test(basename(program))) {
    throw new PagetideError('PT_BAD_ARGUMENT', `not a QEMU for x86_64: ${program ?? 'no command was given'}`, {
      hint: 'After `--`, give qemu-system-x86_64 and its options.',
    });
  }
  if (argv.some((word) => word.includes('\0')))
    throw new PagetideError('PT_BAD_ARGUMENT', 'a QEMU option holds a NUL character');
  const options = parseOptions(words);
  for (const { name, value } of options) {
    if (value === undefined && !FLAGS.has(name))
      throw new PagetideError('PT_BAD_ARGUMENT', `QEMU option -${name} lacks its value`);
    const why = Object.hasOwn(REFUSED, name) ? REFUSED[name] : undefined;
    if (why !== undefined) throw new PagetideError('PT_BAD_ARGUMENT', `QEMU option -${name} cannot be used: ${why}`);
  }
  const objections = optionObjections(options, true);
  if (objections.length > 0) throw new PagetideError('PT_GUEST_UNSAFE', objections.join('; '));
  const own = options.filter(
    ({ name, value }) => name === 'object' && /^\{|^(qom-type=)?memory-backend-/.test(value ?? ''),
  );
  const memory = own.map(({ value }) => ownMemory(value!)).sort((a, b) => (a.id < b.id ? -1 : 1));
  const names = new Set(memory.map(({ file }) => file));
  if (names.size !== memory.length)
    throw new PagetideError('PT_BAD_ARGUMENT', 'two memory objects have the same mem-path');
  const machine = options.filter(({ name }) => name === 'machine' || name === 'M');
  if (memory.length === 0 && machine.some(({ value }) => /(^|,)memory-backend=/.test(value ?? ''))) {
    throw new PagetideError('PT_BAD_ARGUMENT', '-machine memory-backend=… names no memory object of this command line');
  }
  const addMemory = memory.length === 0;
  const display = /^(display|nographic|vnc|spice|curses|sdl)$/;
  return {
    program,
    words,
    memory: addMemory ? [{ id: RAM_ID, size: memorySize(options), file: RAM_ID }] : memory,
    addMemory,
    addDisplay: !options.some(({ name }) => display.test(name)),
  };
}

function ownMemory(value: string): { id: string; size: number; file: string } {
  const refuse = (why: string) => new PagetideError('PT_BAD_ARGUMENT', `-object ${value}: ${why}`);
  const parts = value.split(',');
  if (parts[0] !== 'memory-backend-file') {
    throw refuse('guest RAM must be memory-backend-file,share=on,mem-path={memory}/NAME, or left to Pagetide');
  }
  const given = new Map(parts.slice(1).map((part) => part.split('=', 2) as [string, string | undefined]));
  const id = given.get('id');
  const file = /^\{memory\}\/([\w.-]+)$/.exec(given.get('mem-path') ?? '')?.[1];
  if (id === undefined || !/^[A-Za-z][\w.-]*$/.test(id)) throw refuse('it needs an id');
  if (file === undefined || /^\.+$/.test(file))
    throw refuse('its mem-path must be {memory}/NAME, which each host replaces by a path of its own');
  if (given.get('share') !== 'on') throw refuse('it needs share=on');
  for (const name of ['prealloc', 'discard-data', 'pmem', 'readonly', 'rom'] as const) {
    if ((given.get(name) ?? 'off') !== 'off')
      throw new PagetideError('PT_GUEST_UNSAFE', `-object ${value}: ${name} must be off`);
  }
  if (given.has('offset')) throw refuse('offset cannot be used');
  return { id, size: parseQemuSize(given.get('size') ?? '', 1, `-object ${value}`), file };
}

function memorySize(options: readonly QemuOption[]): number {
  let size = 128 * 2 ** 20;
  for (const { name, value } of options) {
    if (name !== 'm' && name !== 'memory') continue;
    const text = value!.split(',').find((part, at) => part.startsWith('size=') || (at === 0 && !part.includes('=')));
    if (text !== undefined) size = parseQemuSize(text.replace(/^size=/, ''), 2 ** 20, `-m ${value!}`);
  }
  return size;
}

/** A size as QEMU reads it. @param unit bytes that a number without suffix counts: MiB for `-m`, 1 for objects */
export function parseQemuSize(text: string, unit: number, where: string): number {
  const match = /^(\d+(?:\.\d+)?)([bkmgt]?)$/i.exec(text);
  const factors: Record<string, number> = { b: 1, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30, t: 2 ** 40 };
  const size = match ? Number(match[1]) * (match[2] === '' ? unit : factors[match[2]!.toLowerCase()]!) : NaN;
  if (!Number.isSafeInteger(size) || size < 2 ** 20 || size % 4096 !== 0) {
    throw new PagetideError('PT_BAD_ARGUMENT', `${where}: not a memory size of whole pages from 1 MiB up`, {
      hint: 'For example -m 512, -m 2G.',
    });
  }
  return size;
}

/** The paths that a guest has on this host. */
export interface QemuPaths {
  qmp: string;
  /** Where the device state passes, while it passes. */
  state: string;
  log: string;
}

/** @throws PT_BAD_ARGUMENT a folder whose name QEMU or a socket address cannot take */
export function pathsIn(place: GuestPlace): QemuPaths {
  const paths = {
    qmp: join(place.folder, 'qmp.sock'),
    state: join(place.folder, 'state.sock'),
    log: join(place.folder, 'qemu.log'),
  };
  checkSocketPath(paths.qmp);
  checkSocketPath(paths.state);
  // A comma ends a value in QEMU's option syntax; whether it may be doubled depends on the option.
  if (/[,\n\0]/.test(place.folder + place.memoryFolder)) {
    throw new PagetideError('PT_BAD_ARGUMENT', `QEMU cannot take a comma in ${place.folder} or ${place.memoryFolder}`);
  }
  return paths;
}

/** @throws PT_BAD_ARGUMENT */
export function checkSocketPath(path: string): void {
  if (Buffer.byteLength(path) > MAX_SOCKET_PATH) {
    throw new PagetideError(
      'PT_BAD_ARGUMENT',
      `${path} is too long for a Unix socket: ${MAX_SOCKET_PATH} bytes at most`,
      {
        hint: 'Give the agent a shorter --state folder.',
      },
    );
  }
}

/** Where the plan's memory lies on this host. */
export function placeMemory(plan: CommandPlan, place: GuestPlace): MemoryFile[] {
  let offset = 0;
  return plan.memory.map(({ id, size, file }) => {
    const placed = { id, size, offset, path: join(place.memoryFolder, `${memoryPrefix(place)}.${file}`) };
    offset += size;
    return placed;
  });
}

/** Puts this host's paths into a word. */
export function fillIn(word: string, place: GuestPlace): string {
  return word
    .replaceAll('{memory}/', join(place.memoryFolder, `${memoryPrefix(place)}.`))
    .replaceAll('{folder}', place.folder);
}

/** @param start `machine` pins the versioned machine type; `incoming` waits for a state instead of booting */
export function buildCommand(
  plan: CommandPlan,
  place: GuestPlace,
  start: { machine?: string; incoming: boolean },
): { command: string; args: string[] } {
  const paths = pathsIn(place);
  const args = plan.words.map((word) => fillIn(word, place));
  const machine: string[] = start.machine === undefined ? [] : [`type=${start.machine}`];
  if (plan.addMemory) {
    const [file] = placeMemory(plan, place);
    args.push('-object', `memory-backend-file,id=${RAM_ID},size=${file!.size},mem-path=${file!.path},share=on`);
    machine.push(`memory-backend=${RAM_ID}`);
  }
  if (machine.length > 0) args.push('-machine', machine.join(','));
  if (plan.addDisplay) args.push('-display', 'none');
  args.push('-qmp', `unix:${paths.qmp},server=on,wait=off`);
  if (start.incoming) args.push('-incoming', 'defer', '-S');
  return { command: plan.program, args };
}

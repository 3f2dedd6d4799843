/** Decides whether a QEMU guest can be moved without harm. Pure: everything it knows is in the inventory. */
import { PagetideError } from '../../errors.ts';
import type { MemoryFile } from '../driver.ts';
import { balloonObjections } from './balloon.ts';
import { optionObjections, parseOptions } from './arguments.ts';
import { matches, SAFE_DEVICES, SAFE_NETDEVS, SAFE_OBJECTS, UNSAFE_BLOCK_DRIVERS, UNSAFE_DEVICES } from './devices.ts';
import type { Inventory, RamObject } from './inventory.ts';

const SAFE_TYPES = SAFE_DEVICES.flatMap(({ types }) => types);
const MACHINE = /^pc-(q35|i440fx)-\d+\.\d+$/;
const PAGE = 4096;

/** Everything that stands against moving the guest, worst first; empty when it is safe. */
export function findObjections(inventory: Inventory): string[] {
  return [
    ...machineObjections(inventory),
    ...memoryObjections(inventory),
    ...deviceObjections(inventory),
    ...balloonObjections(inventory),
    ...backendObjections(inventory),
    ...optionObjections(parseOptions(inventory.commandLine.slice(1)), inventory.role === 'destination'),
    ...inventory.blockers.map((reason) => `QEMU itself refuses to migrate it: ${reason}`),
  ];
}

/** @throws PT_GUEST_UNSAFE with every reason */
export function assertSafe(inventory: Inventory): void {
  const objections = findObjections(inventory);
  if (objections.length > 0)
    throw new PagetideError('PT_GUEST_UNSAFE', `this guest cannot be moved safely: ${objections.join('; ')}`);
}

/** The guest's memory files, in guest memory space. Of an inventory that {@link assertSafe} has passed. */
export function memoryFiles(inventory: Inventory): MemoryFile[] {
  let offset = 0;
  // By id: both ends come to the same order, whatever order QEMU lists its objects in.
  return [...inventory.ram]
    .sort((a, b) => (a.id < b.id ? -1 : 1))
    .map((ram) => {
      const file = { id: ram.id, path: ram.path ?? '', size: ram.size, offset };
      offset += ram.size;
      return file;
    });
}

function machineObjections(inventory: Inventory): string[] {
  const found: string[] = [];
  if (inventory.arch !== 'x86_64') found.push(`it is ${inventory.arch}; only x86_64 has been proved`);
  if (!MACHINE.test(inventory.machine))
    found.push(`machine type ${inventory.machine} has not been proved; use q35 or pc`);
  if (!inventory.capabilities.includes('x-ignore-shared'))
    found.push('this QEMU lacks the migration capability x-ignore-shared');
  if (['setup', 'active', 'device', 'wait-unplug', 'cancelling', 'pre-switchover'].includes(inventory.migration)) {
    found.push(`QEMU is migrating it already (${inventory.migration})`);
  }
  return found;
}

function memoryObjections(inventory: Inventory): string[] {
  const found = inventory.ram.flatMap((ram) => ramObjections(ram, inventory.role));
  if (inventory.pluggedMemory > 0) found.push('memory was hot-plugged');
  const total = inventory.ram.reduce((sum, { size }) => sum + size, 0);
  if (total !== inventory.baseMemory) {
    found.push(
      `its memory objects hold ${total} bytes, the machine has ${inventory.baseMemory}: each must be guest RAM, and all of it`,
    );
  }
  if (inventory.role === 'destination' && inventory.lockedBytes >= PAGE * 256) {
    found.push('its memory is locked (-overcommit mem-lock=on), so missing pages would be zeros instead of faults');
  }
  return found;
}

function ramObjections(ram: RamObject, role: Inventory['role']): string[] {
  const name = `memory object ${ram.id || '(unnamed)'}`;
  const destination = role === 'destination';
  if (ram.type !== 'memory-backend-file') {
    return [`${name} is ${ram.type}: guest RAM must be -object memory-backend-file,share=on with a mem-path on tmpfs`];
  }
  const found: string[] = [];
  if (!ram.share) found.push(`${name} is private (share=off): its pages cannot be reached from outside`);
  if (ram.pmem) found.push(`${name} is persistent memory (pmem=on)`);
  if (ram.discardData) found.push(`${name} throws its pages away when QEMU ends (discard-data=on)`);
  if (ram.fileOffset !== 0)
    found.push(`${name} begins at offset ${ram.fileOffset} of its file; it must be a file of its own`);
  if (ram.size % PAGE !== 0) found.push(`${name} is not a whole number of pages`);
  if (destination && ram.prealloc)
    found.push(`${name} is preallocated (prealloc=on), so missing pages would be zeros instead of faults`);
  const { file } = ram;
  if (!file?.named)
    return [
      ...found,
      `${name} has no file of a name (mem-path=${ram.path ?? 'none'}); mem-path must name a file, not a folder`,
    ];
  if (file.filesystem === 'hugetlbfs') found.push(`${name} is on hugetlbfs; only tmpfs has been proved`);
  if (file.filesystem === 'other') found.push(`${name} is not on tmpfs, where alone userfaultfd works`);
  if (destination && file.huge !== 'never') {
    found.push(`${name} is on a tmpfs mounted with huge=${file.huge}, where one write makes 512 pages present`);
  }
  if (file.size !== ram.size) found.push(`${name} has ${ram.size} bytes but its file ${file.size}`);
  const [range] = file.mapped;
  if (file.mapped.length !== 1 || range?.permissions !== 'rw-s' || range.end - range.start !== ram.size) {
    found.push(`${name} is not mapped once, whole and shared`);
  }
  return found;
}

function deviceObjections(inventory: Inventory): string[] {
  const found: string[] = [];
  for (const { path, type } of inventory.devices) {
    if (matches(type, SAFE_TYPES)) continue;
    const known = UNSAFE_DEVICES.find((entry) => entry.type.test(type));
    found.push(`device ${type} (${path}): ${known?.why ?? 'it is not on the list of devices known to be safe'}`);
  }
  for (const { id, type } of inventory.objects) {
    // RAM of another kind has been objected to as memory.
    if (!matches(type, SAFE_OBJECTS) && !inventory.ram.some((ram) => ram.id === id)) {
      found.push(`object ${type} (${id}) is not on the list of objects known to be safe`);
    }
  }
  return found;
}

function backendObjections(inventory: Inventory): string[] {
  const found: string[] = [];
  for (const { name, type } of inventory.network) {
    if (!SAFE_NETDEVS.includes(type))
      found.push(`network back end ${name} is ${type}: another process writes guest memory`);
  }
  for (const { name, driver } of inventory.block) {
    const why = UNSAFE_BLOCK_DRIVERS[driver];
    if (why !== undefined) found.push(`disk ${name} is ${driver}: ${why}`);
  }
  for (const file of inventory.deviceFiles) {
    if (/^\/dev\/(vfio\/|iommu$|vhost-|vhost_)/.test(file)) {
      found.push(`QEMU has ${file} open: a device or the host kernel writes guest memory directly`);
    }
  }
  return found;
}

/**
 * What a QEMU guest may be made of so that it can be moved. A list of what is known to be safe, never of what is not: a
 * device that nobody has thought about is refused by name.
 *
 * A device is safe when
 *   1. every byte it reads or writes in guest memory goes through QEMU's own mapping, in QEMU's own process, so that a
 *      missing page faults there (userfaultfd) and a write is seen (write tracking);
 *   2. it never gives guest memory back (virtio-mem), nor brings memory of its own that the guest uses as RAM. A balloon does give it
 *      back, and is safe within limits: balloon.ts;
 *   3. all its state travels in QEMU's device state, none lives in the host's hardware or in another process.
 * docs/qemu.md explains the groups to operators; keep the two in step.
 */
import { BALLOON_TYPE } from './balloon.ts';

export interface DeviceGroup {
  group: string;
  why: string;
  types: readonly (string | RegExp)[];
}

export const SAFE_DEVICES: readonly DeviceGroup[] = [
  {
    group: 'processors and interrupts',
    why: 'State is registers. kvmvapic patches a few guest pages when its state loads; these faults are served by then.',
    types: [
      /^[\w.-]+-(x86_64|i386)-cpu$/,
      'apic',
      'kvm-apic',
      'apic-common',
      'ioapic',
      'kvm-ioapic',
      'isa-i8259',
      'kvm-i8259',
      'kvmvapic',
      'kvmclock',
      'isa-pit',
      'kvm-pit',
      'hpet',
      'mc146818rtc',
    ],
  },
  {
    group: 'chipset',
    why: 'Emulated, registers only; system-management RAM is part of guest RAM.',
    types: [
      'q35-pcihost',
      'mch',
      'ICH9-LPC',
      'ICH9 LPC',
      'ICH9-SMB',
      'ICH9 SMB',
      'i440FX-pcihost',
      'i440FX',
      'PIIX3',
      'piix3-isa',
      'PIIX4_PM',
      'i8257',
      'i8042',
      'ps2-kbd',
      'ps2-mouse',
      'port92',
      'vmport',
      'vmmouse',
      'isa-pcspk',
      'smbus-eeprom',
      'fw_cfg_io',
      'fw_cfg_mem',
      'nvram',
      'cfi.pflash01',
      'acpi-ged',
      'isa-debugcon',
      'isa-debug-exit',
      'pvpanic',
      'pvpanic-pci',
      'vmcoreinfo',
      'vmgenid',
      'i6300esb',
      'ib700',
    ],
  },
  {
    group: 'PCI bridges',
    why: 'Configuration space only.',
    types: [
      'pcie-root-port',
      'ioh3420',
      'x3130-upstream',
      'xio3130-downstream',
      'pcie-pci-bridge',
      'pci-bridge',
      'i82801b11-bridge',
      'pxb',
      'pxb-host',
      'pxb-pcie',
      'pxb-pcie-bus',
    ],
  },
  {
    group: 'virtio, handled inside QEMU',
    why: 'Rings are read and written by QEMU itself. Their vhost and vhost-user forms are other types, or show in network back ends and open files, and are refused.',
    types: [
      /^virtio-(net|blk|scsi|serial|rng|keyboard|mouse|tablet)-pci(-transitional|-non-transitional)?$/,
      /^virtio-(net|blk|scsi|serial|rng|keyboard|mouse|tablet)-device$/,
      'virtio-keyboard',
      'virtio-mouse',
      'virtio-tablet',
      'virtconsole',
      'virtserialport',
    ],
  },
  {
    group: 'memory balloon',
    why: 'Pages are punched out of the memory file, which is noticed; such a guest moves by pre-copy alone, see balloon.ts.',
    types: [BALLOON_TYPE],
  },
  {
    group: 'disks and their controllers',
    why: "DMA is by QEMU's block layer, which is drained when the guest stops. Storage must be reachable from both hosts.",
    types: [
      'ich9-ahci',
      'ahci',
      'piix3-ide',
      'piix4-ide',
      'ide-hd',
      'ide-cd',
      'scsi-hd',
      'scsi-cd',
      'lsi53c895a',
      'isa-fdc',
      'floppy',
      'floppy-bus',
    ],
  },
  {
    group: 'network cards, emulated',
    why: 'Descriptors and packets go through QEMU; what is lost around the switch the network sends again.',
    types: ['e1000', 'e1000-82545em', 'e1000e', 'rtl8139'],
  },
  {
    group: 'display',
    why: 'Video memory is a RAM block of its own that travels in the device state.',
    types: ['VGA', 'secondary-vga', 'bochs-display', 'cirrus-vga', 'isa-vga', 'isa-cirrus-vga', 'ramfb'],
  },
  {
    group: 'serial and parallel ports',
    why: 'Registers.',
    types: ['isa-serial', 'serial', 'pci-serial', 'isa-parallel', 'parallel'],
  },
  {
    group: 'USB, emulated',
    why: 'Transfers go through QEMU. Devices of the host (usb-host, usb-redir) are not on the list.',
    types: [
      'qemu-xhci',
      'nec-usb-xhci',
      'base-xhci',
      'usb-ehci',
      /^ich9-usb-(ehci|uhci)[1-6]$/,
      'piix3-usb-uhci',
      'piix4-usb-uhci',
      'usb-hub',
      'usb-kbd',
      'usb-mouse',
      'usb-tablet',
    ],
  },
];

/** Why the best-known of the others are refused; anything else gets a general reason. */
export const UNSAFE_DEVICES: readonly { type: RegExp; why: string }[] = [
  { type: /^vfio-|^vdpa|-vdpa/, why: 'the host device writes guest memory by DMA that nothing here sees' },
  { type: /^vhost-|^virtio-(fs|9p)/, why: 'another process, or the host kernel, keeps state and writes guest memory' },
  { type: /^ivshmem/, why: 'other processes write its shared memory' },
  {
    type: /^virtio-mem|^pc-dimm|^nvdimm|^virtio-pmem/,
    why: 'it adds or removes guest memory beyond the memory the guest began with',
  },
  { type: /^usb-(host|redir)|passthrough|^scsi-(generic|block)/, why: "part of its state is in the host's hardware" },
  { type: /^tpm|-tpm/, why: 'part of its state is in another process' },
  { type: /^(virtio-(gpu|vga)|qxl)/, why: 'its display memory has not been proved safe yet; use VGA' },
  { type: /^nvme/, why: 'QEMU cannot save its state' },
];

/** Objects that an operator creates with `-object`. */
export const SAFE_OBJECTS: readonly (string | RegExp)[] = [
  'memory-backend-file',
  'iothread',
  'rng-random',
  'rng-builtin',
  'secret',
  'throttle-group',
  'main-loop',
  'thread-context',
  /^tls-creds-/,
  /^authz-/,
];

/** Protocols and formats of disks: those whose storage another host can reach, or that need none. */
export const UNSAFE_BLOCK_DRIVERS: Readonly<Record<string, string>> = {
  vvfat: 'it is made up from a folder of this host',
};

/** Network back ends that hand packets to QEMU, which alone touches guest memory. */
export const SAFE_NETDEVS: readonly string[] = [
  'user',
  'tap',
  'bridge',
  'socket',
  'stream',
  'dgram',
  'hubport',
  'nic',
  'vde',
  'l2tpv3',
];

export function matches(type: string, list: readonly (string | RegExp)[]): boolean {
  return list.some((entry) => (typeof entry === 'string' ? entry === type : entry.test(type)));
}

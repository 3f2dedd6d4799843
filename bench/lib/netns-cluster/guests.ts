/** Guests for a cluster: alike and unlike ones, embedded or real VMs, spread over its hosts. */
import { PagetideError } from '../../../src/errors.ts';
import { cannotLoad, LOADS, loadOptions, type Load } from '../../../test/support/load-guest.ts';
import { until } from '../../../test/support/migrate.ts';
import { guestOptions, needsQemu } from '../../../test/support/qemu-guest.ts';
import type { ClusterAgent } from './agent.ts';
import type { NetnsCluster } from './cluster.ts';

/** `embedded` are alike, as clones of one image; `unlike` differ from each other; the others are VMs, each kind alike. */
export const KINDS = ['embedded', 'unlike', 'qemu', ...LOADS] as const;
export type Kind = (typeof KINDS)[number];

/** TCG on a busy machine. */
const BOOTED_MS = 180_000;
const MIB = 2 ** 20;

export interface GuestsOptions {
  count: number;
  /** Taken in turn. */
  kinds: readonly Kind[];
  /** Bytes; loads have their own. */
  memory: number;
}

export interface PlacedGuest {
  name: string;
  kind: Kind;
  host: ClusterAgent;
}

/** `embedded`, several with commas between, or `mixed`. @throws PagetideError `PT_BAD_ARGUMENT` */
export function parseKinds(text: string): Kind[] {
  if (text === 'mixed') return ['embedded', 'unlike', 'qemu'];
  return text.split(',').map((one) => {
    const kind = KINDS.find((known) => known === one);
    if (kind !== undefined) return kind;
    throw new PagetideError('PT_BAD_ARGUMENT', `"${one.slice(0, 40)}" is no kind of guest`, {
      hint: `${KINDS.join(', ')}; several with commas between, or mixed.`,
    });
  });
}

/**
 * Starts guests at the hosts in turn; resolves when they work.
 * @throws PagetideError `PT_UNSUPPORTED_HOST` where QEMU or the VMs' images are missing, or what the agent answered
 */
export async function startGuests(cluster: NetnsCluster, options: GuestsOptions): Promise<PlacedGuest[]> {
  const { count, kinds, memory } = options;
  for (const kind of new Set(kinds.slice(0, count))) checkKind(kind);
  const guests: PlacedGuest[] = [];
  for (let at = 0; at < count; at++) {
    const kind = kinds[at % kinds.length]!;
    const host = cluster.hosts[at % cluster.hosts.length]!;
    const name = `${kind}-${at + 1}`;
    const embedded = kind === 'embedded' || kind === 'unlike';
    const request = embedded
      ? { name, driver: 'embedded' as const, options: { memory, seed: kind === 'unlike' ? at + 2 : 1 } }
      : { name, driver: 'qemu' as const, options: await vmOptions(kind, memory) };
    await host.client.runGuest({ ...request, ...(cluster.domain === undefined ? {} : { domain: cluster.domain }) });
    const works = async (): Promise<boolean> => ((await host.client.showGuest(name)).stats?.operations ?? 0) > 0;
    await until(`guest ${name} works`, works, BOOTED_MS);
    guests.push({ name, kind, host });
  }
  return guests;
}

function checkKind(kind: Kind): void {
  if (kind === 'embedded' || kind === 'unlike') return;
  const reason = kind === 'qemu' ? needsQemu().skip : cannotLoad();
  if (reason === false) return;
  throw new PagetideError('PT_UNSUPPORTED_HOST', `no guests of kind ${kind}: ${reason}`, {
    hint: 'docs/qemu.md and docs/loads.md say what they need; --kind embedded needs nothing.',
  });
}

async function vmOptions(kind: 'qemu' | Load, memory: number): Promise<Record<string, unknown>> {
  return { ...(kind === 'qemu' ? await guestOptions({ memory: String(Math.ceil(memory / MIB)) }) : loadOptions(kind)) };
}

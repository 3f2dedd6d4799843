/** What `pagetide manifest` found, for machines and for people. */
import { formatSize } from '../../agent/units.ts';
import type { Compressibility } from '../../pages/compressibility.ts';
import type { ManifestComparison, ManifestSummary } from '../../pages/manifest-summary.ts';
import { pairs, table } from '../table.ts';
import type { Subject } from './manifest-subject.ts';

/** How far pages shrink under LZ4. Null of a manifest, which holds no pages. */
export type Packed = (Compressibility & { whole: boolean }) | null;

export interface ManifestResult {
  subject: Pick<Subject, 'kind' | 'name' | 'running'>;
  /** Of 4096 bytes each. */
  frames: ManifestSummary;
  /** The different pages that are not zero. */
  lz4: Packed;
  comparison?: ManifestComparison & {
    with: Pick<Subject, 'kind' | 'name' | 'running'> & { frames: number };
    /** Different pages that the other lacks. */
    missingDistinct: number;
    /** Those pages: what would have to be sent to a host that holds the other. */
    lz4: Packed;
  };
  /** Where the manifest was written. */
  out?: string;
}

const MIB_FRAMES = 256;

/** Several lines. */
export function showManifest(result: ManifestResult): string {
  const { subject, frames, lz4, comparison, out } = result;
  const row = (what: string, count: number): string[] => [
    what,
    String(count).padStart(10),
    (count / MIB_FRAMES).toFixed(1).padStart(9),
    ((count / frames.frames) * 100).toFixed(1).padStart(6),
  ];
  const rows = [
    row('zero', frames.zero),
    row('different pages', frames.distinct),
    row('repeats of them', frames.repeated),
    row('all', frames.frames),
  ];
  const notes: [string, string][] = [['of', about(subject, frames.frames)]];
  if (comparison !== undefined) {
    const { missing, missingDistinct, shared, inPlace } = comparison;
    notes.push(['compared with', about(comparison.with, comparison.with.frames)]);
    rows.push(
      ['', ''],
      row('the other has', shared),
      row('  in that frame', inPlace),
      row('the other lacks', missing),
      row('  different ones', missingDistinct),
    );
  }
  const figures: [string, string][] = [['LZ4', `different pages: ${showPacked(lz4)}`]];
  if (comparison !== undefined) {
    figures.push(['', `pages that the other lacks: ${showPacked(comparison.lz4)}`]);
    figures.push(['chunks', `${comparison.sharedChunks} of ${comparison.chunks} are known to the other as a whole`]);
  }
  if (out !== undefined) figures.push(['written', out]);
  const header = ['', 'FRAMES'.padStart(10), 'MIB'.padStart(9), '%'.padStart(6)];
  return [pairs(notes), '', table(header, rows), '', pairs(figures)].join('\n');
}

function about({ kind, name, running }: Pick<Subject, 'kind' | 'name' | 'running'>, frames: number): string {
  const what = kind === 'file' ? 'memory file' : kind;
  return `${name}: ${what}, ${formatSize(frames * 4096)}${running ? ', read while it ran' : ''}`;
}

function showPacked(packed: Packed): string {
  if (packed === null) return 'unknown, a manifest holds no pages';
  const { pages, sampled, rawBytes, packedBytes, whole } = packed;
  if (pages === 0) return 'none';
  const to = ((packedBytes / rawBytes) * 100).toFixed(1);
  const which = whole ? `all ${pages} packed` : `a sample of ${sampled} of ${pages} packed`;
  return `shrink to ${to}%, ${which}`;
}

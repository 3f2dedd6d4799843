/** The most that went over links in any 100 ms while pages were brought, by capture. */
import { PagetideError } from '../../../src/errors.ts';
import { oneWay, peak, type Frames } from '../netns-cluster/recorder.ts';
import type { Pass } from './types.ts';

/** Lower effort (RFC 8622), in IPv4's byte of DSCP and ECN: the streams that bring pages, and no others here. */
const LOWER_EFFORT = 0x04;
const DSCP = 0xfc;

type Peaks = Pick<Pass, 'peakIn' | 'peakOut' | 'allIn' | 'allOut'>;

/** @param captured a host each. @throws PagetideError `PT_INTERNAL`: frames were missed, so nothing is proven */
export function peaksOf(captured: readonly Frames[]): Peaks {
  const peaks: Peaks = { peakIn: [], peakOut: [], allIn: [], allOut: [] };
  for (const frames of captured) {
    if (frames.missed > 0) throw new PagetideError('PT_INTERNAL', `${frames.missed} frames were not captured`);
    const brings = Uint32Array.from(frames.bytes, (bytes, i) => ((frames.tos[i]! & DSCP) === LOWER_EFFORT ? bytes : 0));
    const of = (bytes: Uint32Array, out: boolean): number => {
      const way = oneWay({ ...frames, bytes }, out);
      return peak(way.atMs, way.bytes).bytes;
    };
    peaks.peakIn.push(of(brings, false));
    peaks.peakOut.push(of(brings, true));
    peaks.allIn.push(of(frames.bytes, false));
    peaks.allOut.push(of(frames.bytes, true));
  }
  return peaks;
}

/** A network namespace of a test's own, with nothing in it but loopback, whose counters the kernel keeps. */
import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';

export interface Network {
  /** To put in front of a command that is to run in it. */
  readonly prefix: readonly string[];
  /** What loopback has carried since it is there, all headers included. */
  carried(): { bytes: number; packets: number };
  /** Segments that TCP sent a second time since it is there: loss probes do so where the other side was slow to answer. */
  resent(): number;
}

function ip(...args: string[]): { ok: boolean; text: string } {
  const { status, stdout } = spawnSync('ip', args, { encoding: 'utf8' });
  return { ok: status === 0, text: stdout };
}

/** Makes one that is gone with the test; undefined where that isn't allowed, or there is no `ip`. */
export function makeNetwork(t: { teardown(fn: () => void): unknown }): Network | undefined {
  const name = `ptt-${randomBytes(4).toString('hex')}`;
  if (!ip('netns', 'add', name).ok) return undefined;
  t.teardown(() => void ip('netns', 'del', name));
  if (!ip('-n', name, 'link', 'set', 'lo', 'up').ok) return undefined;
  return {
    prefix: ['ip', 'netns', 'exec', name],
    carried() {
      const [link] = JSON.parse(ip('-n', name, '-s', '-j', 'link', 'show', 'lo').text) as {
        stats64: { tx: { bytes: number; packets: number } };
      }[];
      return link!.stats64.tx;
    },
    resent() {
      const text = spawnSync('ip', ['netns', 'exec', name, 'cat', '/proc/net/snmp'], { encoding: 'utf8' }).stdout;
      const [names, values] = text.split('\n').filter((line) => line.startsWith('Tcp:'));
      return Number(values!.split(' ')[names!.split(' ').indexOf('RetransSegs')]);
    },
  };
}

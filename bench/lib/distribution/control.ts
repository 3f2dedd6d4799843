/** What distribution did and does at all hosts, as their agents tell it. */
import type { DistributionInfo } from '../../../src/distribution/info.ts';
import type { Host, Score } from './types.ts';

export function statesOf(hosts: readonly Host[]): Promise<DistributionInfo[]> {
  return Promise.all(hosts.map(({ client }) => client.distribution()));
}

/** Tags of each host's guests that the directory was told of. */
export async function reportedTags(hosts: readonly Host[]): Promise<number[]> {
  const tags = ({ domains }: DistributionInfo): number =>
    domains.reduce((sum, { directory }) => sum + (directory.reportedTags ?? 0), 0);
  return (await statesOf(hosts)).map(tags);
}

/** Over all hosts and domains, since the agents began. */
export async function scoreOf(hosts: readonly Host[]): Promise<Score> {
  const score: Score = { spentBytes: 0, savedBytes: 0, servedPages: 0, evictedPages: 0, wrongPages: 0 };
  for (const { totals } of await statesOf(hosts)) {
    score.spentBytes += totals.broughtBytes;
    score.savedBytes += totals.savedBytes;
    score.servedPages += totals.servedPages;
    score.evictedPages += totals.evictedPages;
    score.wrongPages += totals.wrongPages;
  }
  return score;
}

/** Domains as people read them. */
import type { DomainInfo } from '../domains/service.ts';
import { pairs, table } from './table.ts';

/** One line a domain. */
export function showDomains(domains: readonly DomainInfo[]): string {
  if (domains.length === 0) return 'no domains';
  const rows = domains.map((domain) => [
    domain.name,
    domain.home ?? 'made here',
    hosts(domain),
    domain.guests.length === 0 ? '' : domain.guests.join(', '),
    domain.usable ? '' : 'its secret is not here',
  ]);
  return table(['NAME', 'HOME', 'HOSTS', 'GUESTS HERE', 'NOTE'], rows);
}

/** All of one domain. */
export function showDomain(domain: DomainInfo): string {
  const lines: [string, string][] = [
    ['name', domain.name],
    ['id', domain.id],
    ['home', domain.home ?? 'made here'],
    ['guests', domain.guests.length === 0 ? 'none here' : domain.guests.join(', ')],
  ];
  for (const { host, url, state, error } of domain.grants)
    lines.push(['host', `${at(host, url)}: ${state}${error === undefined ? '' : `, ${error.code}: ${error.message}`}`]);
  for (const { host, url } of domain.members) lines.push(['host', at(host, url)]);
  if (!domain.usable) lines.push(['secret', 'NOT HERE: guests of it share nothing']);
  return pairs(lines);
}

function hosts({ grants, members }: DomainInfo): string {
  const names = [
    ...grants.map(({ host, state }) => (state === 'granted' ? host : `${host} (${state})`)),
    ...members.map(({ host }) => host),
  ];
  return names.join(', ');
}

function at(host: string, url: string): string {
  return host === url ? host : `${host} at ${url}`;
}

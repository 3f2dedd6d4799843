import type { Command } from 'commander';
import type { Context } from '../context.ts';
import { addDomainCreate } from './domain-create.ts';
import { addDomainGrant } from './domain-grant.ts';
import { addDomainList } from './domain-list.ts';
import { addDomainRemove } from './domain-remove.ts';
import { addDomainRevoke } from './domain-revoke.ts';
import { addDomainShow } from './domain-show.ts';

/** `pagetide domain …` */
export function addDomain(program: Command, context: () => Context): void {
  const domain = program
    .command('domain')
    .description('sets of guests that may share pages with each other, usually those of one tenant')
    .addHelpText('after', '\nExample:\n  pagetide domain create shop\n  pagetide domain grant shop host-b');
  addDomainCreate(domain, context);
  addDomainList(domain, context);
  addDomainShow(domain, context);
  addDomainGrant(domain, context);
  addDomainRevoke(domain, context);
  addDomainRemove(domain, context);
}

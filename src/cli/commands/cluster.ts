import type { Command } from 'commander';
import type { Context } from '../context.ts';
import { addClusterAddHost } from './cluster-add-host.ts';
import { addClusterInit } from './cluster-init.ts';

/** `pagetide cluster …` */
export function addCluster(program: Command, context: () => Context): void {
  const cluster = program
    .command('cluster')
    .description('certificates by which the agents of a cluster know each other; talks to no agent')
    .addHelpText('after', '\nExample:\n  pagetide cluster init --dir ~/pagetide-cluster');
  addClusterInit(cluster, context);
  addClusterAddHost(cluster, context);
}

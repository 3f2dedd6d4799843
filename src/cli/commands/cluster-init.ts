import { resolve } from 'node:path';
import type { Command } from 'commander';
import { refuseRest, type Context } from '../context.ts';

/** `pagetide cluster init --dir DIR` */
export function addClusterInit(cluster: Command, context: () => Context): void {
  cluster
    .command('init')
    .description('make a cluster: the certificate that signs those of its hosts, and its key')
    .requiredOption('--dir <folder>', 'where they go; not to be on a host of the cluster')
    .addHelpText('after', '\nExample:\n  pagetide cluster init --dir ~/pagetide-cluster')
    .addHelpText(
      'after',
      '\nWhoever has ca-key.pem can make hosts of this cluster: keep it, and keep it to yourself. It is never overwritten.',
    )
    .action(async (options: { dir: string }) => {
      const cli = context();
      refuseRest(cli);
      const folder = resolve(options.dir);
      const [{ CLUSTER_DAYS, makeAuthority, validFor }, { CLUSTER_FILES, writeCluster }] = await Promise.all([
        import('../../trust/authority.ts'),
        import('../../trust/pem-files.ts'),
      ]);
      const validity = validFor(CLUSTER_DAYS);
      await writeCluster(folder, await makeAuthority(validity));
      const made = {
        certificate: resolve(folder, CLUSTER_FILES.certificate),
        key: resolve(folder, CLUSTER_FILES.key),
        notAfter: validity.notAfter.toISOString(),
      };
      cli.result(made, () => `cluster made: ${made.certificate}, valid until ${made.notAfter.slice(0, 10)}`);
    });
}

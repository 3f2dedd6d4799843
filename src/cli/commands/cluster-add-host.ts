import { resolve } from 'node:path';
import type { Command } from 'commander';
import { refuseRest, type Context } from '../context.ts';
import { whole } from '../options.ts';

interface Options {
  dir: string;
  out: string;
  address?: string[];
  days: number;
}

/** `pagetide cluster add-host NAME --dir DIR --out DIR` */
export function addClusterAddHost(cluster: Command, context: () => Context): void {
  cluster
    .command('add-host')
    .description("make a host's certificate and key, for the tls of its agent's configuration")
    .argument('<name>', "the host's name, by which other agents know it")
    .requiredOption('--dir <folder>', 'the cluster, as `pagetide cluster init` made it')
    .requiredOption('--out <folder>', 'where certificate, key and the certificate of the cluster go')
    .option('--address <host...>', 'names and IP addresses under which other agents reach it, beside its name')
    .option('--days <n>', 'how long it is valid', whole(1, 3650), 397)
    .addHelpText(
      'after',
      '\nExample:\n  pagetide cluster add-host host-b --dir ~/pagetide-cluster --out ~/host-b --address 10.0.0.2' +
        '\n\nBring the folder to that host, and give it to the agent: pagetide agent --certificates FOLDER.',
    )
    .action(async (name: string, options: Options) => {
      const cli = context();
      refuseRest(cli);
      const [cluster, folder] = [resolve(options.dir), resolve(options.out)];
      const [{ makeHost, validFor }, { HOST_FILES, readCluster, writeHost }] = await Promise.all([
        import('../../trust/authority.ts'),
        import('../../trust/pem-files.ts'),
      ]);
      const authority = await readCluster(cluster);
      const addresses = options.address ?? [];
      const pair = await makeHost(authority, name, addresses, validFor(options.days));
      await writeHost(folder, authority.certificate, pair);
      const made = {
        name,
        addresses,
        ca: resolve(folder, HOST_FILES.ca),
        certificate: resolve(folder, HOST_FILES.certificate),
        key: resolve(folder, HOST_FILES.key),
        notAfter: pair.notAfter.toISOString(),
      };
      cli.result(made, () => `${name}: certificate and key in ${folder}, valid until ${made.notAfter.slice(0, 10)}`);
    });
}

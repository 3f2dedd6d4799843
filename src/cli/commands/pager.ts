import { resolve } from 'node:path';
import type { Command } from 'commander';
import { refuseRest, type Context } from '../context.ts';
import { cancelled, usage } from '../failure.ts';
import { size, whole } from '../options.ts';

interface Options {
  listen: string[];
  memory: string[];
  manifest?: string[];
  cache?: string;
  cacheSize?: number;
  domainKey?: string;
  maxVms: number;
  fill: boolean;
}

/** For an option that may stand several times. */
const collect = (path: string, before: string[] = []): string[] => [...before, resolve(path)];

/** `pagetide pager` */
export function addPager(program: Command, context: () => Context): void {
  program
    .command('pager')
    .description("serve a snapshot's memory file to the VMMs that connect (Firecracker's hand-over); no agent needed")
    .requiredOption('--listen <socket>', 'Unix socket that VMMs connect to; appears when it is ready', collect)
    .requiredOption('--memory <file>', 'memory file of the snapshot; must not change meanwhile', collect)
    .option('--cache <file>', 'shared-page cache: VMs and snapshots with the same pages share them', (path) =>
      resolve(path),
    )
    .option('--cache-size <size>', 'size of the cache file, e.g. 4G', size)
    .option('--domain-key <file>', 'the secret that pages are named with; without it they are forgotten at the end')
    .option('--manifest <file>', 'of the memory file, by `pagetide manifest --out`: it need not be tagged', collect)
    .option('--max-vms <n>', 'VMMs served at the same time', whole(1, 64), 4)
    .option('--no-fill', 'only serve faults; do not bring the other pages in the background')
    .addHelpText(
      'after',
      '\nExamples:\n  pagetide pager --listen /run/uffd.sock --memory /srv/snapshot/mem\n' +
        '  pagetide pager --listen /run/a.sock --memory /srv/a/mem --listen /run/b.sock --memory /srv/b/mem \\\n' +
        '    --cache /dev/shm/pagetide-cache --cache-size 4G\n' +
        '\n--listen, --memory and --manifest may be given several times, in the same order: a socket a snapshot.',
    )
    .action(async (options: Options) => {
      const cli = context();
      refuseRest(cli);
      const { listen, memory, manifest, cache, cacheSize, domainKey, maxVms, fill } = options;
      if (listen.length !== memory.length) throw usage('there must be one --listen for each --memory');
      if (manifest !== undefined && manifest.length !== memory.length)
        throw usage('there must be one --manifest for each --memory, or none');
      if ((cache === undefined) !== (cacheSize === undefined)) throw usage('--cache and --cache-size go together');
      if (cache === undefined && (domainKey !== undefined || manifest !== undefined))
        throw usage('--domain-key and --manifest are of use with --cache only');
      if (manifest !== undefined && domainKey === undefined)
        throw usage('--manifest needs the --domain-key that it was made with');
      const snapshots = memory.map((path, i) => ({ listen: listen[i]!, memory: path, manifest: manifest?.[i] }));
      const shared =
        cache === undefined || cacheSize === undefined
          ? undefined
          : { path: cache, bytes: cacheSize, keyFile: domainKey === undefined ? undefined : resolve(domainKey) };
      const [{ startPager }, { serve }] = await Promise.all([import('../../pager/main.ts'), import('../serve.ts')]);
      // tagging a big memory file takes its time: whoever does not want to wait for it need not
      const abort = new AbortController();
      const cancel = (): void => abort.abort();
      process.on('SIGTERM', cancel);
      process.on('SIGINT', cancel);
      const sockets = snapshots.map(({ listen, memory }) => ({ listen, memory }));
      try {
        await serve(
          () => startPager({ snapshots, cache: shared, maxVms, fill }, abort.signal).catch(cancelled),
          () =>
            cli.result({ ...sockets[0], snapshots: sockets, pid: process.pid }, () =>
              sockets.map(({ listen, memory }) => `pager ready on ${listen}, serving ${memory}`).join('\n'),
            ),
        );
      } finally {
        process.off('SIGTERM', cancel);
        process.off('SIGINT', cancel);
      }
    });
}

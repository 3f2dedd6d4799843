import { join, resolve } from 'node:path';
import type { Command } from 'commander';
import { refuseRest, type Context } from '../context.ts';
import { cancelled, usage } from '../failure.ts';
import { peerUrl, size, whole } from '../options.ts';

interface Options {
  listen: string[];
  memory?: string[];
  from?: string[];
  manifest?: string[];
  certificates?: string;
  cache?: string;
  cacheSize?: number;
  domainKey?: string;
  maxVms: number;
  fill: boolean;
}

/** For an option that may stand several times. */
const collect = (path: string, before: string[] = []): string[] => [...before, resolve(path)];

/** A list of agents' URLs for one snapshot. */
const collectUrls = (urls: string, before: string[] = []): string[] => [
  ...before,
  urls.split(',').map(peerUrl).join(','),
];

/** Of this host, for connections to agents that speak TLS. Before the first thread is started. */
async function useCertificates(folder: string): Promise<void> {
  const [{ HOST_FILES }, { readCredentials, setCredentials }] = await Promise.all([
    import('../../trust/pem-files.ts'),
    import('../../trust/credentials.ts'),
  ]);
  const path = (name: string): string => join(resolve(folder), name);
  const { ca, certificate, key } = HOST_FILES;
  setCredentials(readCredentials({ ca: path(ca), certificate: path(certificate), key: path(key) }));
}

/** `pagetide pager` */
export function addPager(program: Command, context: () => Context): void {
  program
    .command('pager')
    .description("serve a snapshot's memory file to the VMMs that connect (Firecracker's hand-over); no agent needed")
    .requiredOption('--listen <socket>', 'Unix socket that VMMs connect to; appears when it is ready', collect)
    .option('--memory <file>', 'memory file of the snapshot; must not change meanwhile', collect)
    .option(
      '--from <urls>',
      'instead: agents that have its pages, URL,URL…; needs --manifest and --domain-key',
      collectUrls,
    )
    .option('--cache <file>', 'shared-page cache: VMs and snapshots with the same pages share them', (path) =>
      resolve(path),
    )
    .option('--cache-size <size>', 'size of the cache file, e.g. 4G', size)
    .option('--domain-key <file>', 'the secret that pages are named with; without it they are forgotten at the end')
    .option('--manifest <file>', 'of the memory file, by `pagetide manifest --out`: it need not be tagged', collect)
    .option('--certificates <folder>', 'for --from https://…: as `pagetide cluster add-host` made it')
    .option('--max-vms <n>', 'VMMs served at the same time', whole(1, 64), 4)
    .option('--no-fill', 'only serve faults; do not bring the other pages in the background')
    .addHelpText(
      'after',
      '\nExamples:\n  pagetide pager --listen /run/uffd.sock --memory /srv/snapshot/mem\n' +
        '  pagetide pager --listen /run/a.sock --memory /srv/a/mem --listen /run/b.sock --memory /srv/b/mem \\\n' +
        '    --cache /dev/shm/pagetide-cache --cache-size 4G\n' +
        '  pagetide pager --listen /run/uffd.sock --manifest mem.manifest --from https://host-a:7411 \\\n' +
        '    --domain-key /etc/pagetide/shop.key --certificates /etc/pagetide\n' +
        '\n--listen, --memory and --manifest may be given several times, in the same order: a socket a snapshot.',
    )
    .action(async (options: Options) => {
      const cli = context();
      refuseRest(cli);
      const { listen, memory, from, manifest, cache, cacheSize, domainKey, certificates, maxVms, fill } = options;
      if ((memory === undefined) === (from === undefined)) throw usage('give --memory, or --from, for each --listen');
      const count = (memory ?? from)!.length;
      if (listen.length !== count) throw usage(`there must be one --listen for each ${memory ? '--memory' : '--from'}`);
      if (manifest !== undefined && manifest.length !== count)
        throw usage('there must be one --manifest for each --memory, or none');
      if ((cache === undefined) !== (cacheSize === undefined)) throw usage('--cache and --cache-size go together');
      if (from !== undefined && (manifest === undefined || domainKey === undefined))
        throw usage('--from needs a --manifest, and the --domain-key that it was made with');
      if (cache === undefined && from === undefined && (domainKey !== undefined || manifest !== undefined))
        throw usage('--domain-key and --manifest are of use with --cache, or with --from');
      if (manifest !== undefined && domainKey === undefined)
        throw usage('--manifest needs the --domain-key that it was made with');
      if (certificates !== undefined && from === undefined) throw usage('--certificates is of use with --from only');
      const snapshots = listen.map((socket, i) => ({
        listen: socket,
        memory: memory?.[i],
        from: from?.[i]?.split(','),
        manifest: manifest?.[i],
      }));
      const shared = cache === undefined || cacheSize === undefined ? undefined : { path: cache, bytes: cacheSize };
      const keyFile = domainKey === undefined ? undefined : resolve(domainKey);
      if (certificates !== undefined) await useCertificates(certificates);
      const [{ startPager }, { serve }] = await Promise.all([import('../../pager/main.ts'), import('../serve.ts')]);
      // tagging a big memory file takes its time: whoever does not want to wait for it need not
      const abort = new AbortController();
      const cancel = (): void => abort.abort();
      process.on('SIGTERM', cancel);
      process.on('SIGINT', cancel);
      const sockets = snapshots.map(({ listen, memory, from }) => {
        return memory === undefined ? { listen, from } : { listen, memory };
      });
      try {
        await serve(
          () => startPager({ snapshots, keyFile, cache: shared, maxVms, fill }, abort.signal).catch(cancelled),
          () =>
            cli.result({ ...sockets[0], snapshots: sockets, pid: process.pid }, () =>
              sockets
                .map(({ listen, memory, from }) => `pager ready on ${listen}, serving ${memory ?? from?.join(', ')}`)
                .join('\n'),
            ),
        );
      } finally {
        process.off('SIGTERM', cancel);
        process.off('SIGINT', cancel);
      }
    });
}

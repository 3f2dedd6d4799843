import { resolve } from 'node:path';
import type { Command } from 'commander';
import { refuseRest, type Context } from '../context.ts';
import { domainName } from '../options.ts';

/** `pagetide snapshot …` */
export function addSnapshot(program: Command, context: () => Context): void {
  const snapshot = program
    .command('snapshot')
    .description('memory files of snapshots whose pages other hosts of a domain get: see `pagetide pager --from`')
    .addHelpText('after', '\nExample:\n  pagetide snapshot share /srv/snapshot/mem --domain shop');
  addShare(snapshot, context);
  addList(snapshot, context);
  addUnshare(snapshot, context);
}

function addShare(snapshot: Command, context: () => Context): void {
  snapshot
    .command('share')
    .argument('<file>', "memory file on the agent's host; whole pages, and nothing else")
    .description('share a memory file with the hosts of a domain; ends when all of it is tagged')
    .requiredOption('--domain <name>', 'whose hosts may have its pages', domainName)
    .option('--manifest <file>', "of the file, made with the domain's key: it need not be tagged", (path) =>
      resolve(path),
    )
    .addHelpText('after', '\nExample:\n  pagetide snapshot share /srv/snapshot/mem --domain shop')
    .action(async (file: string, options: { domain: string; manifest?: string }) => {
      const cli = context();
      refuseRest(cli);
      const client = await cli.client();
      const info = await client.shareSnapshot({ file: resolve(file), ...options });
      cli.result(info, () => `${info.file}: ${info.frames} pages, ${info.zero} of them zero, for '${info.domain}'`);
    });
}

function addList(snapshot: Command, context: () => Context): void {
  snapshot
    .command('list')
    .description('what this host shares')
    .addHelpText('after', '\nExample:\n  pagetide snapshot list')
    .action(async () => {
      const cli = context();
      refuseRest(cli);
      const client = await cli.client();
      const [infos, { table }] = await Promise.all([client.listSnapshots(), import('../table.ts')]);
      cli.result(infos, () =>
        table(
          ['DOMAIN', 'PAGES', 'ZERO', 'FILE'],
          infos.map(({ file, domain, frames, zero }) => [domain, String(frames), String(zero), file]),
        ),
      );
    });
}

function addUnshare(snapshot: Command, context: () => Context): void {
  snapshot
    .command('unshare')
    .argument('<file>', 'as `pagetide snapshot list` shows it')
    .description('share it no more; the file stays')
    .addHelpText('after', '\nExample:\n  pagetide snapshot unshare /srv/snapshot/mem')
    .action(async (file: string) => {
      const cli = context();
      refuseRest(cli);
      const client = await cli.client();
      const path = resolve(file);
      await client.unshareSnapshot(path);
      cli.result({ unshared: path }, () => `${path} is not shared any more`);
    });
}

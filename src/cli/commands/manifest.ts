import { existsSync, statSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import type { Command } from 'commander';
import { PagetideError } from '../../errors.ts';
import { cancelled, usage } from '../failure.ts';
import { refuseRest, type Context } from '../context.ts';
import type { Scanned } from './manifest-subject.ts';
import type { ManifestResult, Packed } from './manifest-show.ts';

interface Options {
  compare?: string;
  out?: string;
  domainKey?: string;
}

/** `pagetide manifest FILE|GUEST` */
export function addManifest(program: Command, context: () => Context): void {
  program
    .command('manifest')
    .description('what of a memory is zero, repeats, and is shared with another')
    .argument('<file|guest>', 'a memory file, a manifest, or a guest of the agent on this host; a file goes first')
    .option('--compare <file|guest>', 'tell what that one has of it')
    .option('--out <file>', 'write the manifest; needs --domain-key')
    .option('--domain-key <file>', 'the secret that pages are named with: 64 hex digits, mode 0600')
    .addHelpText('after', '\nExample:\n  pagetide manifest /srv/snapshot-a/mem --compare /srv/snapshot-b/mem')
    .addHelpText(
      'after',
      '\nWithout a key, pages are named with one that is forgotten at once: enough to compare two memories, while what is\n' +
        'written has to be comparable later. A guest is read while it runs, so its manifest is of no single moment.',
    )
    .action(async (name: string, options: Options) => {
      const cli = context();
      refuseRest(cli);
      const abort = new AbortController();
      const cancel = (): void => abort.abort();
      process.once('SIGINT', cancel);
      process.once('SIGTERM', cancel);
      try {
        const result = await run(name, options, cli, abort.signal).catch(cancelled);
        const { showManifest } = await import('./manifest-show.ts');
        cli.result(result, () => showManifest(result));
      } finally {
        process.off('SIGINT', cancel);
        process.off('SIGTERM', cancel);
      }
    });
}

async function run(name: string, options: Options, cli: Context, signal: AbortSignal): Promise<ManifestResult> {
  const [{ findSubject, scanSubject }, { keyMark, passingKey, readKeyFile }, { DomainKey }] = await Promise.all([
    import('./manifest-subject.ts'),
    import('../../pages/key-file.ts'),
    import('../../pages/tags.ts'),
  ]);
  // everything that can be refused is, before anything is read that takes long
  const out = options.out === undefined ? undefined : resolve(options.out);
  if (out !== undefined && options.domainKey === undefined)
    throw usage('--out needs --domain-key: nothing can be compared with names under a key that is forgotten');
  const subject = await findSubject(name, cli);
  const other = options.compare === undefined ? undefined : await findSubject(options.compare, cli);
  if (options.domainKey === undefined && [subject, other].some((one) => one?.kind === 'manifest'))
    throw usage('a manifest can only be read with the --domain-key that it was made with');
  if (out !== undefined) await checkOut(out);
  const secret = options.domainKey === undefined ? passingKey() : readKeyFile(resolve(options.domainKey));
  const mark = keyMark(secret);
  const key = new DomainKey(secret);
  secret.fill(0);
  const scanned: Scanned[] = [];
  const { scanProgress } = await import('./manifest-progress.ts');
  const progress = await scanProgress(process.stderr, cli, [subject, other]);
  try {
    for (const one of [subject, other]) {
      if (one === undefined) continue;
      const onProgress = progress.begin(one);
      scanned.push(await scanSubject(one, mark, { key, signal, onProgress }, cli));
    }
    progress.end();
    const [mine, theirs] = scanned as [Scanned, Scanned?];
    const result = await summarize(mine, theirs, signal);
    if (out === undefined) return result;
    const { writeManifest } = await import('../../pages/manifest-file.ts');
    writeManifest(out, mine.manifest, mark);
    return { ...result, out };
  } finally {
    progress.end();
    for (const one of scanned) one.close();
    key.close();
  }
}

async function summarize(mine: Scanned, theirs: Scanned | undefined, signal: AbortSignal): Promise<ManifestResult> {
  const [{ compareManifests, summarizeManifest, uniqueFrames }, { measureCompressibility }] = await Promise.all([
    import('../../pages/manifest-summary.ts'),
    import('../../pages/compressibility.ts'),
  ]);
  const pack = async (frames: Uint32Array): Promise<Packed> => {
    if (mine.memory === undefined) return null;
    const packed = await measureCompressibility(mine.memory.segments, frames, signal);
    return { ...packed, whole: packed.sampled === packed.pages };
  };
  const named = ({ subject: { kind, name, running } }: Scanned) => ({ kind, name, running });
  const result: ManifestResult = {
    subject: named(mine),
    frames: summarizeManifest(mine.manifest),
    lz4: await pack(uniqueFrames(mine.manifest)),
  };
  if (theirs === undefined) return result;
  const lacking = uniqueFrames(mine.manifest, theirs.manifest);
  result.comparison = {
    with: { ...named(theirs), frames: theirs.manifest.frames },
    ...compareManifests(mine.manifest, theirs.manifest),
    missingDistinct: lacking.length,
    lz4: await pack(lacking),
  };
  return result;
}

/** Nothing but a manifest is written over: a slip must not cost a memory file. */
async function checkOut(out: string): Promise<void> {
  if (statSync(dirname(out), { throwIfNoEntry: false })?.isDirectory() !== true)
    throw new PagetideError('PT_IO', `there is no folder ${dirname(out)}`, { hint: 'Make it, or write elsewhere.' });
  const { isManifestFile } = await import('../../pages/manifest-file.ts');
  if (existsSync(out) && !isManifestFile(out)) throw usage(`${out} is there already, and is no manifest`);
}

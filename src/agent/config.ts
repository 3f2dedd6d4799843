/**
 * The agent's configuration: a YAML or JSON file, overridden by the command line, completed by defaults. Everything is
 * checked here, before anything is created. Each field's description is what docs/configuration.md says.
 */
import { readFileSync, statfsSync } from 'node:fs';
import { hostname } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { parseDocument } from 'yaml';
import { z } from 'zod';
import { asPagetideError, PagetideError } from '../errors.ts';
import { MOST_PEERS } from '../memory/peers.ts';
import { HOST_FILES } from '../trust/pem-files.ts';
import {
  checkDirectory,
  completeDistribution,
  directoryFields,
  distributionFields,
  type DistributionConfig,
} from './config-distribution.ts';
import { bytesPerSecond, cacheSize } from './config-units.ts';
import { parseListen, type ListenAddress } from './listen-address.ts';
import { checkSocketPath, controlSocket, defaultState, MAX_SOCKET_PATH, NAME_PATTERN } from './names.ts';

/** A folder below it takes guests' sockets: `guests/<name>/<socket>`; room for a name of 16 and a socket of 13 bytes. */
const GUEST_SOCKET_ROOM = '/guests/'.length + 16 + '/'.length + 13;
/** f_type of tmpfs, from linux/magic.h. */
const TMPFS_MAGIC = 0x01021994;
/** Largest configuration file, bytes. */
const FILE_LIMIT = 1024 * 1024;

const path = z
  .string()
  .min(1)
  .max(4096)
  .refine((text) => !text.includes('\0'), 'holds a zero byte');
const millis = z.int().min(10).max(3_600_000);

/** The file's schema. Unknown keys are refused; every field has a default, and a description for the docs. */
export const configSchema = z.strictObject({
  listen: z
    .string()
    .default('127.0.0.1:7411')
    .describe('Address and port for other agents; without `tls` on loopback only. Port 0: any free one.'),
  advertise: z
    .url({ protocol: /^https?$/, error: 'an http:// or https:// URL' })
    .exactOptional()
    .describe('URL under which other agents reach this one, where it is not that of `listen`: https:// with `tls`.'),
  tls: z
    .strictObject({
      ca: path.describe("The cluster's certificate; only agents that have one from it are talked to."),
      certificate: path.describe("This host's certificate."),
      key: path.describe('Its key; only the agent’s user may be able to read it.'),
    })
    .exactOptional()
    .describe('Certificates, as `pagetide cluster add-host` makes them, PEM; see security.md. Default: none.'),
  state: path
    .exactOptional()
    .describe(
      'Folder for journals, sockets and logs; one agent, one folder. Default: `/var/lib/pagetide` for root, else `$XDG_STATE_HOME/pagetide` or `~/.local/state/pagetide`.',
    ),
  name: z
    .string()
    .regex(NAME_PATTERN, 'small letters, digits and dashes, 63 at most, beginning with a letter or digit')
    .exactOptional()
    .describe("The agent's name. Default: the host's."),
  memoryFolder: path
    .exactOptional()
    .describe('Folder on a tmpfs for the memory files of guests. Default: `/dev/shm/pagetide-<uid>-<name>`.'),
  runtimeFolder: path
    .exactOptional()
    .describe('Folder for Unix sockets, where the path of `state` is too long for them. Default: `state`.'),
  faultWorkers: z
    .int()
    .min(1)
    .max(64)
    .default(4)
    .describe('Threads that serve page faults, one for each guest that arrives at the same time.'),
  batchWorkers: z.int().min(1).max(64).default(1).describe('Threads that digest, compress and verify in batches.'),
  spinMicros: z
    .int()
    .min(0)
    .max(1000)
    .default(20)
    .describe(
      'Microseconds that a fault worker waits awake for the next fault before it sleeps: saves the time to wake it, costs CPU.',
    ),
  fill: z
    .strictObject({
      batchFrames: z.int().min(1).max(4096).default(64).describe('Frames in one batch of the background fill.'),
      window: z.int().min(1).max(64).default(4).describe('Batches of the background fill that are asked for at once.'),
      bandwidth: bytesPerSecond
        .exactOptional()
        .describe('Limit of the background fill of one migration, bytes a second, or with K, M, G. Default: none.'),
      deltas: z
        .boolean()
        .default(true)
        .describe(
          'Whether guests that arrive get pages that changed between two rounds of copying as deltas, where that takes fewer bytes.',
        ),
    })
    .prefault({})
    .describe('The background fill, which brings the pages that have not faulted.'),
  pager: z
    .strictObject({
      userfaultfd: z
        .enum(['auto', 'off'])
        .default('auto')
        .describe(
          'Whether guests that arrive may run here before they have every page, which takes a userfaultfd. `off`: only those come that are copied whole, by pre-copy.',
        ),
    })
    .prefault({})
    .describe('Guests that run here while their pages follow.'),
  cache: z
    .strictObject({
      size: cacheSize
        .default(0)
        .describe(
          'Bytes of the cache file, or with K, M, G; all of it is allocated at once. 0: no cache. Of use to guests of a domain only.',
        ),
      path: path
        .exactOptional()
        .describe(
          'The cache file, on a tmpfs or a disk; one agent, one file. Default: `shared-pages` in `memoryFolder`.',
        ),
      history: z
        .int()
        .min(0)
        .max(10_000)
        .default(64)
        .describe('Guests that left whose manifests are kept, in `state`, for when they come back.'),
    })
    .prefault({})
    .describe('The shared-page cache: pages that guests of one domain have in common, see docs/cache.md.'),
  domains: z
    .strictObject({
      contactMs: millis
        .default(60_000)
        .describe(
          'Milliseconds between two rounds in which the agent asks those that granted it domains whether it still has them, and tells hosts that were away what was revoked.',
        ),
    })
    .prefault({})
    .describe('Domains, see security.md.'),
  peers: z
    .strictObject({
      serve: z
        .boolean()
        .default(true)
        .describe('Whether other hosts of a domain get pages of it from here, by tag: from the cache and from guests.'),
      most: z
        .int()
        .min(0)
        .max(MOST_PEERS)
        .default(4)
        .describe('Other hosts, besides the source, that are asked for the pages of a guest that arrives. 0: none.'),
      waitMs: millis
        .default(500)
        .describe(
          'Milliseconds without a byte after which such a host, where it owes an answer, is given up for a while.',
        ),
    })
    .prefault({})
    .describe('Pages of a domain from hosts that are not the source, see docs/pages.md.'),
  watch: z
    .strictObject({
      cpu: z
        .number()
        .min(0)
        .max(1)
        .default(0.05)
        .describe(
          'Share of one CPU that watching all guests together may take, tag workers included. 0: no guest is watched.',
        ),
      intervalMs: millis.default(2_000).describe('From the end of one look at what a guest has written to the next.'),
    })
    .prefault({})
    .describe(
      'Watching guests of a domain while they run: others that arrive find their pages, and their own migrations begin with tags.',
    ),
  distribution: distributionFields,
  directory: directoryFields,
  timeouts: z
    .strictObject({
      prepareMs: millis.default(60_000).describe('For the destination to get ready, VMM started.'),
      loadMs: millis.default(60_000).describe('For the device state to be sent and loaded.'),
      vmmMs: millis.default(30_000).describe('For one answer of a VMM.'),
      peerMs: millis.default(10_000).describe('For one short answer of another agent, and for connecting to it.'),
    })
    .prefault({})
    .describe('Milliseconds.'),
  log: z
    .strictObject({
      level: z
        .enum(['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'])
        .default('info')
        .describe('The least that is logged.'),
      format: z.enum(['json', 'text']).default('json').describe('One JSON object a line, or text for people.'),
    })
    .prefault({})
    .describe('The log, on standard error.'),
});

type ConfigFile = z.output<typeof configSchema>;

/** Everything an agent needs to know, checked and complete; paths are absolute. */
export interface AgentConfig extends Omit<
  ConfigFile,
  'listen' | 'state' | 'name' | 'memoryFolder' | 'runtimeFolder' | 'distribution'
> {
  listen: ListenAddress;
  distribution: DistributionConfig;
  state: string;
  name: string;
  memoryFolder: string;
  /** Where sockets go: the control socket, and below `guests/` those of the guests. */
  runtimeFolder: string;
  /** Path of the control socket. */
  control: string;
}

/** What the command line may override. */
export interface ConfigFlags {
  listen?: string;
  advertise?: string;
  state?: string;
  name?: string;
  /** Folder that `pagetide cluster add-host` made: stands for `tls`. */
  certificates?: string | undefined;
}

/** What of the host the defaults and checks depend on; tests give their own. */
export interface ConfigHost {
  env: NodeJS.ProcessEnv;
  uid: number;
  hostname: string;
  /** f_type of the file system that `path` is on; throws as `statfs` does. */
  fileSystem(path: string): number;
}

const thisHost = (): ConfigHost => ({
  env: process.env,
  uid: process.getuid?.() ?? 0,
  hostname: hostname(),
  fileSystem: (at) => statfsSync(at).type,
});

/** Reads `file` if given, applies `flags` over it, and checks the whole. Throws `PT_BAD_CONFIG`, naming the field. */
export function loadConfig(
  file: string | undefined,
  flags: ConfigFlags = {},
  host: ConfigHost = thisHost(),
): AgentConfig {
  const given = file === undefined ? {} : readConfig(file);
  const where = file ?? 'the command line';
  const { certificates, ...plain } = flags;
  const merged = {
    ...given,
    ...Object.fromEntries(Object.entries(plain).filter(([, value]: [string, unknown]) => value !== undefined)),
    ...(certificates === undefined ? {} : { tls: hostFiles(certificates) }),
  };
  const result = configSchema.safeParse(merged);
  if (!result.success) {
    const text = result.error.issues.map((issue) => {
      const at = issue.path.join('.');
      if (issue.code === 'unrecognized_keys') {
        return `${issue.keys.map((key) => (at === '' ? key : `${at}.${key}`)).join(', ')}: no such field`;
      }
      return at === '' ? issue.message : `${at}: ${issue.message}`;
    });
    throw new PagetideError('PT_BAD_CONFIG', `${where}: ${text.join('; ')}`);
  }
  return complete(result.data, host);
}

function readConfig(file: string): Record<string, unknown> {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (cause) {
    throw new PagetideError('PT_BAD_CONFIG', `cannot read ${file}`, {
      cause,
      hint: 'Check the path given to --config.',
    });
  }
  if (text.length > FILE_LIMIT) throw new PagetideError('PT_BAD_CONFIG', `${file} is larger than ${FILE_LIMIT} bytes`);
  // YAML holds JSON; no alias may blow up
  const document = parseDocument(text, { prettyErrors: true, uniqueKeys: true });
  const problem = document.errors[0];
  if (problem !== undefined) {
    const line = problem.linePos?.[0].line;
    const message = problem.message.split('\n')[0]!.replace(/ at line \d+, column \d+:?$/, '');
    throw new PagetideError('PT_BAD_CONFIG', `${file}${line === undefined ? '' : `:${line}`}: ${message}`);
  }
  let content: unknown;
  try {
    content = document.toJS({ maxAliasCount: 100 });
  } catch (cause) {
    throw asPagetideError(cause, 'PT_BAD_CONFIG', file);
  }
  if (content === null) return {};
  if (typeof content === 'object' && !Array.isArray(content)) return content as Record<string, unknown>;
  throw new PagetideError('PT_BAD_CONFIG', `${file}: must hold fields with values`);
}

function complete(given: ConfigFile, host: ConfigHost): AgentConfig {
  const secure = given.tls !== undefined;
  const listen = parseListen(given.listen, secure);
  checkAdvertised(given.advertise, listen, secure);
  const name = given.name ?? nameOf(host.hostname);
  const state = resolve(given.state ?? defaultState(host.env, host.uid));
  const runtimeFolder = resolve(given.runtimeFolder ?? state);
  const control = controlSocket(runtimeFolder);
  // one byte more: it is bound under a name of its own first
  checkSocketPath(`${control}~`, 'control socket');
  checkSocketPath(runtimeFolder + 'x'.repeat(GUEST_SOCKET_ROOM), 'sockets of guests');
  const memoryFolder = resolve(given.memoryFolder ?? `/dev/shm/pagetide-${host.uid}-${name}`);
  checkTmpfs(memoryFolder, host);
  checkDirectory(given.directory);
  const { tls: files, ...rest } = given;
  const tls = files && { ca: resolve(files.ca), certificate: resolve(files.certificate), key: resolve(files.key) };
  const cache = { ...given.cache, ...(given.cache.path === undefined ? {} : { path: resolve(given.cache.path) }) };
  return {
    ...rest,
    ...(tls === undefined ? {} : { tls }),
    listen,
    name,
    state,
    runtimeFolder,
    control,
    memoryFolder,
    cache,
    distribution: completeDistribution(given.distribution, cache.size),
  };
}

/** Other agents must be able to use the URL: what the port speaks, and an address that means this host to them, too. */
function checkAdvertised(advertise: string | undefined, listen: ListenAddress, secure: boolean): void {
  if (advertise === undefined) {
    if (listen.host !== '0.0.0.0' && listen.host !== '::') return;
    throw new PagetideError('PT_BAD_CONFIG', `listen: ${listen.host} is every address, and so none for other agents`, {
      hint: 'Say with advertise under which URL they reach this one, e.g. https://host-a:7411.',
    });
  }
  if (advertise.startsWith('https:') === secure) return;
  throw new PagetideError(
    'PT_BAD_CONFIG',
    secure
      ? `advertise: ${advertise} is not https, and with tls the port speaks nothing else`
      : `advertise: ${advertise} is https, which needs tls`,
  );
}

function hostFiles(folder: string): NonNullable<ConfigFile['tls']> {
  const { ca, certificate, key } = HOST_FILES;
  return { ca: join(folder, ca), certificate: join(folder, certificate), key: join(folder, key) };
}

/** The host's name, as far as it can be an agent's. */
function nameOf(host: string): string {
  const label = host
    .split('.')[0]!
    .toLowerCase()
    .replaceAll(/[^a-z0-9-]/g, '-')
    .replace(/^-+/, '')
    .slice(0, 63);
  return NAME_PATTERN.test(label) ? label : 'agent';
}

/** userfaultfd knows tmpfs and hugetlbfs only, and guests' memory must not end up on a disk. */
function checkTmpfs(folder: string, host: ConfigHost): void {
  // the folder itself may have to be created yet
  for (let at = folder; ; at = dirname(at)) {
    let type: number;
    try {
      type = host.fileSystem(at);
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code === 'ENOENT' && at !== '/') continue;
      throw new PagetideError('PT_BAD_CONFIG', `memoryFolder: cannot look at ${at}`, { cause });
    }
    if (type === TMPFS_MAGIC) return;
    throw new PagetideError('PT_BAD_CONFIG', `memoryFolder: ${folder} is not on a tmpfs`, {
      hint: 'Choose a folder below /dev/shm, or mount a tmpfs there: mount -t tmpfs tmpfs FOLDER.',
    });
  }
}

/** The folder of a guest's sockets. Throws `PT_BAD_ARGUMENT` where `name` is too long for them beside the folder's path. */
export function guestSocketFolder(config: Pick<AgentConfig, 'runtimeFolder'>, name: string): string {
  const folder = join(config.runtimeFolder, 'guests', name);
  const room = MAX_SOCKET_PATH - Buffer.byteLength(folder) - '/'.length - 13;
  if (room >= 0) return folder;
  throw new PagetideError(
    'PT_BAD_ARGUMENT',
    `the name ${name} is ${-room} bytes too long for Unix sockets in ${folder}`,
    {
      hint: 'Choose a shorter name, or set runtimeFolder to a short path.',
    },
  );
}

/**
 * Starts an agent, in this order: lock and journal, domains, cache, guests, page server (the port), migrations, control socket. The
 * control socket appears last: who finds it finds an agent that is ready.
 */
import { mkdir, rmdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { Logger } from 'pino';
import { PagetideError } from '../errors.ts';
import type { MigrationHost } from '../migration/host.ts';
import type { SharedPages } from '../migration/shared-pages.ts';
import { DomainStore } from '../domains/store.ts';
import { compactOwnership } from '../migration/ownership/index.ts';
import { WorkerPools } from '../memory/worker-pools.ts';
import { TagPool } from '../pages/tag-pool.ts';
import type { ConnectPeer } from '../transport/member-peer.ts';
import { TagPace } from '../distribution/tag-pace.ts';
import { Sightings } from '../distribution/sightings.ts';
import type { Manifest } from '../pages/manifest.ts';
import { AgentDistribution } from './distribution.ts';
import { PageServer } from '../transport/page-server.ts';
import { PeerClient } from '../transport/peer.ts';
import { agentUrl } from '../trust/agent-url.ts';
import { readCredentials, setCredentials, type CredentialFiles, type Credentials } from '../trust/credentials.ts';
import { Agent } from './agent.ts';
import { buildApi } from './api/app.ts';
import { openSharedPages } from './cache.ts';
import { userfaultfd } from './capabilities.ts';
import { listenControl } from './api/listen.ts';
import type { AgentConfig } from './config.ts';
import { Directories } from './directories.ts';
import { GuestWatches } from './guest-watches.ts';
import { Guests } from './guests.ts';
import { Journal, type JournalRecord } from './journal.ts';
import { urlOf } from './listen-address.ts';
import { createLogger } from './log.ts';
import { checkRoom } from './room.ts';
import { SharedDomains } from './shared-domains.ts';
import type { RedisDirectories } from './redis-directories.ts';
import { Snapshots } from './snapshots.ts';

/** A source that is silent for this long has given a destination up that doesn't own the guest yet, milliseconds. */
const SILENCE_MS = 30_000;

/** Days before its end from which on a certificate is warned about. */
const SOON_DAYS = 30;
/** Least time between two lines about refused connections, milliseconds. */
const REFUSAL_MS = 1_000;

/** A running agent. */
export interface RunningAgent {
  /** Lets go of everything; guests live on. */
  close(): Promise<void>;
  /** Under which other agents reach it, with the actual port. */
  url: string;
}

/** Starts an agent. On failure nothing of it is left. @throws PagetideError */
export async function startAgent(config: AgentConfig): Promise<RunningAgent> {
  const log = createLogger({ ...config.log, name: config.name });
  const undo: (() => unknown)[] = [];
  /** Folders that were not there before. */
  const made: string[] = [];
  const close = async (): Promise<void> => {
    for (const step of undo.splice(0).reverse()) await step();
  };
  try {
    // first: every thread that is started from here on takes them along
    const trust = config.tls === undefined ? undefined : trusted(config, config.tls, log);
    setCredentials(trust);
    undo.push(() => setCredentials(undefined));
    const redis = await redisOf(config);
    undo.push(() => redis?.close());
    for (const folder of [config.runtimeFolder, config.memoryFolder])
      if ((await mkdir(folder, { recursive: true, mode: 0o700 })) !== undefined) made.push(folder);
    const journal = await Journal.open(config.state);
    undo.push(() => journal.close());
    await journal.compact(compact);

    const domains = await DomainStore.open(join(config.state, 'domains'), log);
    const pages = openSharedPages(config, domains, log);
    undo.push(() => pages.close());
    await domains.eraseRest();

    const guests = new Guests(config, journal, log);
    undo.push(() => guests.close());
    await guests.recover();

    const pools = new WorkerPools(config.faultWorkers);
    undo.push(() => pools.close());
    const tagPool = new TagPool(config.batchWorkers);
    undo.push(() => tagPool.close());
    const sightings = new Sightings();
    const watches = new GuestWatches({ shared: pages.shared, tagPool, log, settings: config.watch, sightings });
    undo.push(() => watches.close());
    const { host, port } = config.listen;
    const pageServer = await PageServer.start({
      host,
      port,
      controlSocket: config.control,
      batchThreads: config.batchWorkers,
    });
    undo.push(() => pageServer.close());
    pageServer.onFailure((error) => {
      // Nobody can reach this agent any more, nor fetch a page: better to be started again by whoever watches over it.
      log.fatal({ code: error.code }, error.message);
      process.exitCode = 1;
      process.kill(process.pid, 'SIGTERM');
    });

    pageServer.onRefused(refusalLog(log));
    const snapshots = new Snapshots({ folder: join(config.state, 'snapshots'), shared: pages.shared, tagPool, log });
    // after the page server, whose streams look into them
    undo.splice(-1, 0, () => snapshots.close());
    if (config.peers.serve) {
      const sharedDomains = new SharedDomains({ store: domains, shared: pages.shared, snapshots, pageServer, log });
      // likewise
      undo.splice(-1, 0, () => sharedDomains.close());
      await sharedDomains.start();
    }

    const url = config.advertise ?? pageServer.address().url;
    const connect: ConnectPeer = (other, whom) => new PeerClient(other, { ...whom, answerMs: config.timeouts.peerMs });
    const pace = new TagPace(config.distribution.peak);
    const directories = new Directories({
      ...{
        store: domains,
        folder: join(config.state, 'directory'),
        identity: trust?.name,
        control: config.control,
        log,
      },
      leaseMs: config.directory.leaseMs,
      redis,
      pace,
      connect,
      guests: (domain) => sightings.guests(domain),
      stableTags: (guest) => sightings.stableTags(guest),
    });
    undo.push(() => directories.close());
    await directories.start();
    /** Started last. */
    const late: { distribution?: AgentDistribution } = {};
    const agent = new Agent(
      config,
      migrationHost(config, {
        ...{ guests, journal, pools, tagPool, watches, shared: pages.shared, pageServer, url, log },
        // before the watches list it: what guests here have already was not saved by what was brought
        arrived: (domain, manifest) => late.distribution?.arrived(domain, manifest),
      }),
      guests,
      journal,
      domains,
      snapshots,
      trust?.name,
      directories,
      log,
    );
    undo.push(() => agent.close());
    await agent.migrations.recover();
    agent.watchGuests(watches);
    void snapshots.recover();
    const distribution = await AgentDistribution.start({
      ...{ config, store: domains, directories, shared: pages.shared, sightings, pace, pageServer, url, connect, log },
      identity: trust?.name,
      guest: (name) => {
        const { vmm } = guests.need(name);
        return { domain: vmm.record.domain, manifest: watches.manifestOf(vmm) };
      },
      watchedS: () => watches.busyS,
    });
    undo.push(() => distribution.close());
    late.distribution = distribution;
    agent.distribute(distribution);

    const api = buildApi(agent, { logger: log });
    undo.push(() => api.close());
    await listenControl(api, config.control);
    agent.domains.start();
    undo.push(() => agent.domains.close());
    log.info({ url, control: config.control, state: config.state }, 'agent is ready');
    return { close, url };
  } catch (error) {
    await close();
    // empty ones only: whoever has put something there meanwhile keeps it
    for (const folder of made.reverse()) await rmdir(folder).catch(() => undefined);
    throw error;
  }
}

/** Connects in the background. @throws PagetideError `PT_BAD_CONFIG` */
async function redisOf({ directory }: AgentConfig): Promise<RedisDirectories | undefined> {
  const { url, ...rest } = directory;
  if (url === undefined) return undefined;
  // its client is a good part of what an agent would load
  const { RedisDirectories } = await import('./redis-directories.ts');
  return new RedisDirectories({ ...rest, url });
}

/** The agent's certificates, once they are sure to be accepted for the URL that it will have. */
function trusted(config: AgentConfig, files: CredentialFiles, log: Logger): Credentials & { name: string } {
  const { own, ...credentials } = readCredentials(files);
  const url = config.advertise ?? urlOf(config.listen, true);
  const host = agentUrl(url)?.host ?? '';
  if (!own.covers(host)) {
    throw new PagetideError(
      'PT_BAD_CERTIFICATE',
      `${files.certificate}: is not for ${host}, which other agents are told`,
      {
        hint: `Make it with \`pagetide cluster add-host ${own.name} --address ${host}\`, or set advertise to what it is for.`,
      },
    );
  }
  const days = Math.floor((own.notAfter.getTime() - Date.now()) / 86_400_000);
  if (days < SOON_DAYS)
    log.warn({ certificate: files.certificate, days }, 'the certificate of this host runs out soon');
  log.info({ identity: own.name, notAfter: own.notAfter }, 'speaks TLS only, with hosts of its cluster');
  return { ...credentials, name: own.name };
}

/** Says who was not let in; one line a second at most, as anybody may knock. */
function refusalLog(log: Logger): (error: PagetideError, from: string) => void {
  let last = -Infinity;
  let unsaid = 0;
  return ({ code, message }, from) => {
    unsaid++;
    if (performance.now() - last < REFUSAL_MS) return;
    log.warn({ code, from, times: unsaid }, `refused a connection: ${message}`);
    last = performance.now();
    unsaid = 0;
  };
}

interface Parts {
  guests: Guests;
  journal: Journal;
  pools: WorkerPools;
  tagPool: TagPool;
  watches: GuestWatches;
  shared: SharedPages;
  pageServer: PageServer;
  url: string;
  log: ReturnType<typeof createLogger>;
  arrived(domain: number, manifest: Manifest): void;
}

function migrationHost(config: AgentConfig, parts: Parts): MigrationHost {
  const { guests, journal, pools, tagPool, watches, shared, pageServer, url, log } = parts;
  const { fill, timeouts, spinMicros } = config;
  return {
    log,
    pageServer,
    pools,
    tagPool,
    shared,
    watched: (vmm, domain) => watches.handOver(vmm, domain),
    manifestOf: (vmm) => watches.manifestOf(vmm),
    arrived: (vmm, domain, manifest) => {
      parts.arrived(domain, manifest);
      watches.arrived(vmm, domain, manifest);
    },
    userfaultfd: () =>
      config.pager.userfaultfd === 'off' ? { ok: false, why: 'it is turned off: pager.userfaultfd' } : userfaultfd(),
    url,
    settings: {
      spinMicros,
      fill: {
        batchFrames: fill.batchFrames,
        window: fill.window,
        bandwidth: fill.bandwidth ?? 0,
        deltas: fill.deltas,
      },
      silenceMs: SILENCE_MS,
      prepareMs: timeouts.prepareMs,
      loadMs: timeouts.loadMs,
      userfaultfd: config.pager.userfaultfd,
    },
    connectPeer: (peer, expect) =>
      new PeerClient(peer, {
        expect,
        answerMs: timeouts.peerMs,
        workMs: Math.max(timeouts.prepareMs, timeouts.loadMs) + timeouts.vmmMs,
      }),
    journal: (record, details) => journal.append({ kind: 'migration', record, details }),
    place: (guest) => guests.place(guest),
    prepareVmm: (guest, description, needs) => guests.prepare(guest, description, needs),
    findVmm: (guest, record) => guests.find(guest, record),
    killStrays: (guest) => guests.endStrays(guest),
    checkRoom: (description) => checkRoom(description.memory.size, config.memoryFolder),
    adopt: (guest, vmm) => guests.adopt(guest, vmm),
    release: (guest, vmm, record) => guests.release(guest, vmm, record),
  };
}

/** The last record of each guest that is here, and of each migration that may be asked about, with its details. */
function compact(records: readonly JournalRecord[]): JournalRecord[] {
  const guests = new Map<string, JournalRecord>();
  const details = new Map<string, Record<string, unknown>>();
  const steps = records.flatMap((entry) => {
    if (entry.kind === 'guest' || entry.kind === 'guest-starting') guests.set(entry.name, entry);
    else if (entry.kind === 'guest-gone') guests.delete(entry.name);
    if (entry.kind !== 'migration') return [];
    const { side, migration, epoch } = entry.record;
    if (entry.details !== undefined) details.set(`${side} ${migration} ${epoch}`, entry.details);
    return [entry.record];
  });
  const kept = compactOwnership(steps).map((record): JournalRecord => {
    const known = details.get(`${record.side} ${record.migration} ${record.epoch}`);
    return { kind: 'migration', record, ...(known === undefined ? {} : { details: known }) };
  });
  return [...guests.values(), ...kept];
}

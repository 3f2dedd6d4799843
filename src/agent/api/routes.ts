/** The routes: each checks its request, calls one method of the service, and checks the answer. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { FastifyBaseLogger, FastifyInstance, RawServerDefault } from 'fastify';
import type { ZodTypeProvider } from 'fastify-type-provider-zod';
import { z } from 'zod';
import type { AgentService } from '../service.ts';
import type { EventStreams } from './events.ts';
import { addEvacuationRoutes } from './evacuation-routes.ts';
import { addDirectoryRoutes } from './directory-routes.ts';
import { addDistributionRoutes } from './distribution-routes.ts';
import { addDomainRoutes } from './domain-routes.ts';
import * as s from './schemas.ts';
import { addSnapshotRoutes } from './snapshot-routes.ts';

const nameParams = z.object({ name: s.guestName });
const idParams = z.object({ id: s.migrationId });
const nothing = z.null().meta({ description: 'Done.' });
const failure = { '4xx': s.errorJson, '5xx': s.errorJson };
const list = <T extends z.ZodType>(item: T) => z.array(item);

/** The operator's routes and the peers'; `events` keeps track of open streams. */
export function addRoutes(app: FastifyInstance, service: AgentService, events: EventStreams): void {
  const typed = app.withTypeProvider<ZodTypeProvider>();
  addHostRoutes(typed, service);
  addGuestRoutes(typed, service);
  addDomainRoutes(typed, service.domains);
  addDirectoryRoutes(typed, service.directories);
  addCacheRoutes(typed, service);
  addSnapshotRoutes(typed, service);
  addMigrationRoutes(typed, service, events);
  addEvacuationRoutes(typed, service, events);
  addDistributionRoutes(typed, service);
  addPeerRoutes(typed, service);
}

export type TypedApp = FastifyInstance<
  RawServerDefault,
  IncomingMessage,
  ServerResponse,
  FastifyBaseLogger,
  ZodTypeProvider
>;

function addHostRoutes(app: TypedApp, service: AgentService): void {
  const tags = ['host'];
  app.get(
    '/v1/info',
    { schema: { tags, summary: 'Who this agent is', response: { 200: s.agentInfo, ...failure } } },
    () => service.info(),
  );
  app.get(
    '/v1/doctor',
    {
      schema: {
        tags,
        summary: 'What this host can do, and what is missing',
        response: { 200: list(s.check), ...failure },
      },
    },
    () => service.doctor(),
  );
  const text = z.string();
  app.get(
    '/metrics',
    {
      schema: {
        tags,
        summary: 'Metrics, in the text format of Prometheus',
        response: { 200: { description: 'Metrics', content: { 'text/plain': { schema: text } } }, ...failure },
      },
    },
    async (_request, reply) => {
      const metrics = await service.metrics();
      return reply.type('text/plain; version=0.0.4; charset=utf-8').send(metrics);
    },
  );
  app.get(
    '/v1/openapi.json',
    {
      schema: {
        tags,
        summary: 'This description',
        response: { 200: z.record(z.string(), z.unknown()), ...failure },
      },
    },
    () => ({ ...app.swagger() }),
  );
}

function addGuestRoutes(app: TypedApp, service: AgentService): void {
  const tags = ['guests'];
  app.get(
    '/v1/guests',
    { schema: { tags, summary: 'All guests of this agent', response: { 200: list(s.guestInfo), ...failure } } },
    () => service.listGuests(),
  );
  app.get(
    '/v1/guests/:name',
    { schema: { tags, summary: 'One guest', params: nameParams, response: { 200: s.guestInfo, ...failure } } },
    (request) => service.showGuest(request.params.name),
  );
  app.post(
    '/v1/guests/attach',
    {
      schema: {
        tags,
        summary: 'Take on a VMM that runs, or waits as incoming',
        body: s.guestRequest,
        response: { 201: s.guestInfo, ...failure },
      },
    },
    async (request, reply) => reply.code(201).send(await service.attachGuest(request.body)),
  );
  app.post(
    '/v1/guests/run',
    {
      schema: {
        tags,
        summary: 'Start a guest on this host, detached from the agent',
        body: s.guestRequest,
        response: { 201: s.guestInfo, ...failure },
      },
    },
    async (request, reply) => reply.code(201).send(await service.runGuest(request.body)),
  );
  app.post(
    '/v1/guests/:name/verify',
    {
      schema: {
        tags,
        summary: 'Let a guest check every frame of its memory',
        params: nameParams,
        response: { 200: s.verifyAnswer, ...failure },
      },
    },
    async (request) => ({ result: await service.verifyGuest(request.params.name) }),
  );
  app.post(
    '/v1/guests/:name/cancel',
    {
      schema: {
        tags: ['migrations'],
        summary: "Cancel the guest's migration; refused once the guest belongs to the destination",
        params: nameParams,
        response: { 200: s.migrationInfo, ...failure },
      },
    },
    (request) => service.cancel(request.params.name),
  );
  app.delete(
    '/v1/guests/:name',
    {
      schema: {
        tags,
        summary: 'End a guest that was launched, let go of one that was attached',
        params: nameParams,
        response: { 204: nothing, ...failure },
      },
    },
    async (request, reply) => {
      await service.removeGuest(request.params.name);
      return reply.code(204).send(null);
    },
  );
}

function addCacheRoutes(app: TypedApp, service: AgentService): void {
  const tags = ['cache'];
  app.get(
    '/v1/cache',
    {
      schema: {
        tags,
        summary: 'The shared-page cache and the resident index',
        response: { 200: s.cacheInfo, ...failure },
      },
    },
    () => service.cacheInfo(),
  );
  app.delete(
    '/v1/cache',
    { schema: { tags, summary: 'Erase every page of the cache', response: { 200: s.cleared, ...failure } } },
    () => ({ erased: service.clearCache() }),
  );
  app.post(
    '/v1/cache/warm',
    {
      schema: {
        tags,
        summary: 'Put the pages of a guest or a memory file into the cache; answers when they are in',
        body: s.warmRequest,
        response: { 200: s.kept, ...failure },
      },
    },
    (request) => service.warmCache(request.body),
  );
}

function addMigrationRoutes(app: TypedApp, service: AgentService, events: EventStreams): void {
  const tags = ['migrations'];
  app.post(
    '/v1/migrations',
    {
      schema: {
        tags,
        summary: 'Start a migration; answers once it is journaled',
        body: s.migrateRequest,
        response: { 202: s.migrationInfo, ...failure },
      },
    },
    async (request, reply) => reply.code(202).send(await service.migrate(request.body)),
  );
  app.get(
    '/v1/migrations',
    { schema: { tags, summary: 'Migrations, both ways', response: { 200: list(s.migrationInfo), ...failure } } },
    () => service.listMigrations(),
  );
  app.get(
    '/v1/migrations/:id',
    { schema: { tags, summary: 'One migration', params: idParams, response: { 200: s.migrationInfo, ...failure } } },
    (request) => service.showMigration(request.params.id),
  );
  app.get(
    '/v1/migrations/:id/events',
    {
      schema: {
        tags,
        summary: 'The migration now and at every change, one JSON object a line, until it ends',
        params: idParams,
        response: {
          200: { description: 'Lines', content: { 'application/x-ndjson': { schema: s.migrationInfo } } },
          ...failure,
        },
      },
    },
    (request, reply) => {
      const { id } = request.params;
      // an unknown one must fail here, while there is still a status to say so
      service.showMigration(id);
      events.send(reply, s.migrationInfo, (signal) => service.watchMigration(id, signal));
    },
  );
}

/** Between agents. Each may be repeated, and may take as long as its work takes. */
function addPeerRoutes(app: TypedApp, service: AgentService): void {
  const tags = ['between agents'];
  const answer = { 200: s.incomingStatus, ...failure };
  app.get(
    '/v1/capabilities',
    {
      schema: {
        tags,
        summary: 'What this agent can do as a destination',
        response: { 200: s.capabilities, ...failure },
      },
    },
    () => service.capabilities(),
  );
  app.post(
    '/v1/incoming',
    { schema: { tags, summary: 'Get ready for a guest', body: s.prepareRequest, response: answer } },
    (request) => service.prepareIncoming(request.body, request.peer),
  );
  app.get(
    '/v1/incoming/:id',
    { schema: { tags, summary: 'What the destination knows', params: idParams, response: answer } },
    (request) => service.incomingStatus(request.params.id, request.peer),
  );
  app.post(
    '/v1/incoming/:id/load',
    {
      schema: {
        tags,
        summary: 'Load the state that the source streams; answers when all of it is there',
        params: idParams,
        body: s.loadBody,
        response: answer,
      },
    },
    (request) => {
      const { epoch, rest } = request.body;
      return service.loadIncoming(request.params.id, epoch, rest, request.peer);
    },
  );
  app.post(
    '/v1/incoming/:id/copy',
    {
      schema: {
        tags,
        summary:
          'Fetch what is lacking of the manifest that was told up to this round; answers when all of it was asked for',
        params: idParams,
        body: s.copyBody,
        response: answer,
      },
    },
    (request) => {
      const { epoch, round } = request.body;
      return service.copyIncoming(request.params.id, epoch, round, request.peer);
    },
  );
  app.post(
    '/v1/incoming/:id/limit',
    {
      schema: {
        tags,
        summary: 'Fetch so many bytes of pages a second from now on, at most',
        params: idParams,
        body: s.limitBody,
        response: answer,
      },
    },
    (request) => {
      const { epoch, bandwidth } = request.body;
      return service.limitIncoming(request.params.id, epoch, bandwidth, request.peer);
    },
  );
  app.post(
    '/v1/incoming/:id/take-over',
    {
      schema: {
        tags,
        summary: 'Become the owner; answers when that is journaled and the guest runs',
        params: idParams,
        body: s.epochBody,
        response: answer,
      },
    },
    (request) => service.takeOver(request.params.id, request.body.epoch, request.peer),
  );
  app.post(
    '/v1/incoming/:id/abort',
    {
      schema: {
        tags,
        summary: 'Refuse the epoch for good and clean up',
        params: idParams,
        body: s.epochBody,
        response: answer,
      },
    },
    (request) => service.abortIncoming(request.params.id, request.body.epoch, request.peer),
  );
  app.post(
    '/v1/outgoing/:id/complete',
    {
      schema: {
        tags,
        summary: 'The destination has every page: the source may free the guest',
        params: idParams,
        body: s.completeBody,
        response: { 204: nothing, ...failure },
      },
    },
    async (request, reply) => {
      const { epoch, figures } = request.body;
      await service.completeOutgoing(request.params.id, epoch, figures, request.peer);
      return reply.code(204).send(null);
    },
  );
  app.post(
    '/v1/outgoing/:id/recheck',
    {
      schema: {
        tags,
        summary: 'Pages came that are not those of their tags: the source looks at them again',
        params: idParams,
        body: s.recheckBody,
        response: { 200: s.recheckAnswer, ...failure },
      },
    },
    async (request) => {
      const { epoch, frames } = request.body;
      return { findings: await service.recheckOutgoing(request.params.id, epoch, frames, request.peer) };
    },
  );
}

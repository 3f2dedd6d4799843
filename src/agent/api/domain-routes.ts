/**
 * The routes of domains. Where secrets are at stake the plain port is no way in: anybody on the host can use it, and could
 * have a domain granted to himself, or say that he is its home.
 */
import type { FastifyRequest } from 'fastify';
import { z } from 'zod';
import type { Sender } from '../../domains/messages.ts';
import { PagetideError } from '../../errors.ts';
import type { AgentDomains } from '../service.ts';
import * as d from './domain-schemas.ts';
import type { TypedApp } from './routes.ts';
import { domainName, errorJson } from './schemas.ts';

const nameParams = z.object({ name: domainName });
const idParams = z.object({ id: d.domainId });
const failure = { '4xx': errorJson, '5xx': errorJson };

export function addDomainRoutes(app: TypedApp, domains: AgentDomains): void {
  addOperatorRoutes(app, domains);
  addAgentRoutes(app, domains);
}

function addOperatorRoutes(app: TypedApp, domains: AgentDomains): void {
  const tags = ['domains'];
  app.get(
    '/v1/domains',
    { schema: { tags, summary: 'The domains of this host', response: { 200: z.array(d.domainInfo), ...failure } } },
    () => domains.list(),
  );
  app.get(
    '/v1/domains/:name',
    { schema: { tags, summary: 'One domain', params: nameParams, response: { 200: d.domainInfo, ...failure } } },
    (request) => domains.show(request.params.name),
  );
  app.post(
    '/v1/domains',
    {
      onRequest: refusePort,
      schema: {
        tags,
        summary: 'Make a domain, with a secret of its own; only on the control socket',
        body: d.domainRequest,
        response: { 201: d.domainInfo, ...failure },
      },
    },
    async (request, reply) => reply.code(201).send(await domains.create(request.body.name)),
  );
  app.post(
    '/v1/domains/:name/grant',
    {
      onRequest: refusePort,
      schema: {
        tags,
        summary: 'Give a domain to another host; answers once it has it. Only on the control socket',
        params: nameParams,
        body: d.grantRequest,
        response: { 200: d.domainInfo, ...failure },
      },
    },
    (request) => domains.grant(request.params.name, request.body.to),
  );
  app.post(
    '/v1/domains/:name/revoke',
    {
      onRequest: refusePort,
      schema: {
        tags,
        summary:
          'Have a host forget a domain and its pages; at once, or when it is reached. Only on the control socket',
        params: nameParams,
        body: d.revokeRequest,
        response: { 200: d.domainInfo, ...failure },
      },
    },
    (request) => domains.revoke(request.params.name, request.body.host),
  );
  app.delete(
    '/v1/domains/:name',
    {
      onRequest: refusePort,
      schema: {
        tags,
        summary: 'Remove a domain and erase its pages, here and where it was granted. Only on the control socket',
        params: nameParams,
        response: { 200: d.domainRemoval, ...failure },
      },
    },
    (request) => domains.remove(request.params.name),
  );
}

/** Between agents; see src/domains/messages.ts. Each may be repeated. */
function addAgentRoutes(app: TypedApp, domains: AgentDomains): void {
  const tags = ['between agents'];
  app.get(
    '/v1/domain-grants/:id',
    {
      onRequest: refuseUnknown,
      schema: {
        tags,
        summary: 'Whether this agent has a domain',
        params: idParams,
        response: { 200: d.domainAnswer, ...failure },
      },
    },
    (request) => domains.answer(request.params.id),
  );
  app.put(
    '/v1/domain-grants/:id',
    {
      onRequest: refuseUnknown,
      schema: {
        tags,
        summary: 'Take a domain, with its secret',
        params: idParams,
        body: d.domainOffer,
        response: { 200: d.domainAnswer, ...failure },
      },
    },
    (request) => domains.accept(request.params.id, request.body, senderOf(request)),
  );
  app.delete(
    '/v1/domain-grants/:id',
    {
      onRequest: refuseUnknown,
      schema: {
        tags,
        summary: 'Forget a domain and its pages; answers once they are erased',
        params: idParams,
        querystring: d.withdrawQuery,
        response: { 204: z.null().meta({ description: 'Done.' }), ...failure },
      },
    },
    async (request, reply) => {
      await domains.withdraw(request.params.id, request.query.epoch, senderOf(request));
      return reply.code(204).send(null);
    },
  );
  app.post(
    '/v1/domain-grants/:id/check-in',
    {
      onRequest: refuseUnknown,
      schema: {
        tags,
        summary: 'Whether the host that asks still has a domain of this agent',
        params: idParams,
        body: d.checkInBody,
        response: { 200: d.domainCheckIn, ...failure },
      },
    },
    (request) => domains.checkIn(request.params.id, request.body.as, senderOf(request)),
  );
  app.post(
    '/v1/domain-grants/:id/give-up',
    {
      onRequest: refuseUnknown,
      schema: {
        tags,
        summary: 'The host that asks has removed a domain of this agent',
        params: idParams,
        body: d.giveUpBody,
        response: { 204: z.null().meta({ description: 'Done.' }), ...failure },
      },
    },
    async (request, reply) => {
      await domains.gaveUp(request.params.id, request.body.as, request.body.epoch, senderOf(request));
      return reply.code(204).send(null);
    },
  );
}

/** Who asks, by its certificate; null on the control socket. */
export function senderOf({ peer }: FastifyRequest): Sender {
  return peer ?? null;
}

type Done = (error?: Error) => void;

function refusePort({ viaPort }: FastifyRequest, _reply: unknown, done: Done): void {
  if (!viaPort) done();
  else
    done(
      new PagetideError('PT_NO_PERMISSION', 'domains are changed on the control socket only', {
        hint: 'Use the control socket on this host: anybody on it can use the port.',
      }),
    );
}

/** Lets only those in of whom it is sure who they are: another host by its certificate, or this host's user. */
export function refuseUnknown({ viaPort, peer }: FastifyRequest, _reply: unknown, done: Done): void {
  if (!viaPort || peer !== undefined) done();
  else
    done(
      new PagetideError('PT_NO_PERMISSION', 'over plain HTTP there is no telling which host asks', {
        hint: 'Give both agents certificates; or, on one host, grant to unix:PATH of the other agent’s control socket.',
      }),
    );
}

/**
 * The routes of directories. Between agents: a domain's directory, for the hosts that have the domain, and what of a guest is stable.
 * Bodies with tags are binary (src/directory/codec.ts). Who asks is known as of domains: by its certificate, or, over the control
 * socket, by what it says (`as`).
 */
import { z } from 'zod';
import * as codec from '../../directory/codec.ts';
import { MOST_QUERY_TAGS } from '../../directory/directory.ts';
import { AFFINITY_HOSTS_LIMIT } from '../../directory/hint.ts';
import { PagetideError } from '../../errors.ts';
import { TAG_BYTES } from '../../pages/tags.ts';
import type { AgentDirectories } from '../service.ts';
import { domainId } from './domain-schemas.ts';
import { refuseUnknown, senderOf } from './domain-routes.ts';
import type { TypedApp } from './routes.ts';
import { domainName, errorJson, guestName } from './schemas.ts';

const OCTETS = 'application/octet-stream';
const failure = { '4xx': errorJson, '5xx': errorJson };
const octets = z.string().meta({ format: 'binary' });
const binary = {
  200: { description: 'See src/directory/codec.ts', content: { [OCTETS]: { schema: octets } } },
  ...failure,
};
const params = z.object({ id: domainId });
const as = z.string().min(1).max(1024).exactOptional().meta({
  description: "What the domain's home calls the host that asks; only counts on the control socket.",
});
const asked = z.object({ as });
const host = z.string().min(1).max(255);
const count = z.int().min(1);
const done = z.null().meta({ description: 'Done.' });
const leftMs = z.number().meta({ description: 'Milliseconds until it expires.' });
const hint = z
  .discriminatedUnion('kind', [
    z.strictObject({ kind: z.literal('evacuate'), host, leftMs }),
    z.strictObject({
      kind: z.literal('affinity'),
      guest: z.string().max(128),
      hosts: z.array(host).max(AFFINITY_HOSTS_LIMIT),
      leftMs,
    }),
  ])
  .meta({ id: 'DirectoryHint' });
const subject = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('evacuate'), host }),
  z.strictObject({ kind: z.literal('affinity'), guest: z.string().max(128) }),
]);
const hostInfo = z.object({ host: z.string(), epoch: count, leaseMs: z.number(), guests: z.int().min(0) });

export function addDirectoryRoutes(app: TypedApp, directories: AgentDirectories): void {
  app.delete(
    '/v1/directory/:name',
    {
      schema: {
        tags: ['domains'],
        summary: "Empty a domain's directory: every host tells all again. Only where the domain was made",
        params: z.object({ name: domainName }),
        response: { 204: done, ...failure },
      },
    },
    async (request, reply) => {
      await directories.empty(request.params.name);
      return reply.code(204).send(null);
    },
  );
  // a scope of its own, as nothing else takes bytes
  app.register((scope, _options, ready) => {
    scope.addContentTypeParser(OCTETS, { parseAs: 'buffer' }, (_request, body, parsed) => parsed(null, body));
    addAgentRoutes(scope, directories);
    ready();
  });
}

function addAgentRoutes(app: TypedApp, directories: AgentDirectories): void {
  const tags = ['between agents'];
  const base = '/v1/domain-directories/:id';
  const consumes = [OCTETS];
  app.post(
    `${base}/report`,
    {
      onRequest: refuseUnknown,
      bodyLimit: codec.MOST_REPORT_BYTES,
      schema: { tags, summary: 'What has changed of a host', consumes, params, querystring: asked, response: binary },
    },
    async (request, reply) => {
      const directory = directories.member(request.params.id, request.query.as, senderOf(request));
      const answer = await directory.report(codec.decodeReport(bytesOf(request.body)));
      return reply.type(OCTETS).send(codec.encodeAnswer(answer) as never);
    },
  );
  app.post(
    `${base}/heartbeat`,
    {
      onRequest: refuseUnknown,
      schema: {
        tags,
        summary: 'A host is still there',
        params,
        querystring: asked,
        body: z.strictObject({ host, epoch: count, sequence: count.exactOptional() }),
        response: binary,
      },
    },
    async (request, reply) => {
      const directory = directories.member(request.params.id, request.query.as, senderOf(request));
      const { host, epoch, sequence } = request.body;
      const answer = await directory.heartbeat(host, epoch, sequence);
      return reply.type(OCTETS).send(codec.encodeAnswer(answer) as never);
    },
  );
  app.post(
    `${base}/holders`,
    {
      onRequest: refuseUnknown,
      bodyLimit: MOST_QUERY_TAGS * TAG_BYTES,
      schema: { tags, summary: 'Who holds tags', consumes, params, querystring: asked, response: binary },
    },
    async (request, reply) => {
      const { id } = request.params;
      const directory = directories.member(id, request.query.as, senderOf(request));
      const holders = await directory.holders(id, bytesOf(request.body));
      return reply.type(OCTETS).send(codec.encodeHolders(holders) as never);
    },
  );
  app.get(
    `${base}/lacking`,
    {
      onRequest: refuseUnknown,
      schema: {
        tags,
        summary: 'What guests of other hosts hold and none of this one, in pages',
        params,
        querystring: z.object({
          as,
          host,
          limit: z.coerce.number().int().min(1),
          cursor: z.string().max(255).exactOptional(),
        }),
        response: binary,
      },
    },
    async (request, reply) => {
      const { id } = request.params;
      const { as, host, ...options } = request.query;
      const page = await directories.member(id, as, senderOf(request)).lacking(id, host, options);
      return reply.type(OCTETS).send(codec.encodeLacking(page) as never);
    },
  );
  app.get(
    `${base}/hosts`,
    {
      onRequest: refuseUnknown,
      schema: {
        tags,
        summary: 'The hosts that have reported',
        params,
        querystring: asked,
        response: { 200: z.array(hostInfo), ...failure },
      },
    },
    (request) => directories.member(request.params.id, request.query.as, senderOf(request)).hosts(),
  );
  app.get(
    `${base}/hints`,
    {
      onRequest: refuseUnknown,
      schema: {
        tags,
        summary: 'What operators say about where guests will go',
        params,
        querystring: asked,
        response: { 200: z.array(hint), ...failure },
      },
    },
    async (request) => {
      const { id } = request.params;
      const hints = await directories.member(id, request.query.as, senderOf(request)).hints(id);
      return hints.map((hint) => (hint.kind === 'affinity' ? { ...hint, hosts: [...hint.hosts] } : hint));
    },
  );
  app.post(
    `${base}/hint`,
    {
      onRequest: refuseUnknown,
      // 64 names of 255 characters, at most
      schema: {
        tags,
        summary: 'Say where guests will go',
        params,
        querystring: asked,
        body: hint,
        response: { 204: done, ...failure },
      },
    },
    async (request, reply) => {
      const { id } = request.params;
      await directories.member(id, request.query.as, senderOf(request)).hint(id, request.body);
      return reply.code(204).send(null);
    },
  );
  app.post(
    `${base}/withdraw`,
    {
      onRequest: refuseUnknown,
      schema: {
        tags,
        summary: 'Take back what was said about a host or a guest',
        params,
        querystring: asked,
        body: subject,
        response: { 200: z.object({ withdrawn: z.boolean() }), ...failure },
      },
    },
    async (request) => {
      const { id } = request.params;
      const directory = directories.member(id, request.query.as, senderOf(request));
      return { withdrawn: await directory.withdraw(id, request.body) };
    },
  );
  app.get(
    `${base}/guests`,
    {
      onRequest: refuseUnknown,
      schema: {
        tags,
        summary: 'The guests of the domain that are here, by name',
        params,
        querystring: asked,
        response: { 200: z.array(guestName), ...failure },
      },
    },
    (request) => directories.guests(request.params.id, request.query.as, senderOf(request)),
  );
  app.get(
    `${base}/guests/:guest/tags`,
    {
      onRequest: refuseUnknown,
      schema: {
        tags,
        summary: 'The stable tags of a guest that is here, in pages: 4 bytes, the next cursor (0: none), and tags',
        params: params.extend({ guest: guestName }),
        querystring: z.object({
          as,
          cursor: z.coerce.number().int().min(0).max(0xffff_ffff).default(0),
          most: z.coerce.number().int().min(1).max(MOST_QUERY_TAGS).optional(),
        }),
        response: binary,
      },
    },
    async (request, reply) => {
      const { id, guest } = request.params;
      const { as, cursor, most } = request.query;
      const page = await directories.guestTags(id, guest, { cursor, most }, as, senderOf(request));
      const next = Buffer.alloc(4);
      next.writeUInt32LE(page.next);
      return reply.type(OCTETS).send(Buffer.concat([next, page.tags]) as never);
    },
  );
}

function bytesOf(body: unknown): Uint8Array {
  if (body instanceof Uint8Array) return body;
  throw new PagetideError('PT_BAD_ARGUMENT', `the body is ${OCTETS}`);
}

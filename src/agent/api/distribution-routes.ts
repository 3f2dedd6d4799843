/** The routes of distribution and of operators' plans, and the one by which members of a domain ask each other. */
import { z } from 'zod';
import { PagetideError } from '../../errors.ts';
import type { DistributionService } from '../distribution-service.ts';
import type { AgentService } from '../service.ts';
import * as d from './distribution-schemas.ts';
import { refuseUnknown, senderOf } from './domain-routes.ts';
import type { TypedApp } from './routes.ts';
import { domainName, errorJson, guestName } from './schemas.ts';

const failure = { '4xx': errorJson, '5xx': errorJson };
const nothing = z.null().meta({ description: 'Done.' });

export function addDistributionRoutes(app: TypedApp, service: AgentService): void {
  const need = (): DistributionService => {
    if (service.distribution !== undefined) return service.distribution;
    throw new PagetideError('PT_NOT_CONFIGURED', 'this agent does not take part in distribution');
  };
  addOperatorRoutes(app, need);
  addPlanRoutes(app, need);
  app.post(
    '/v1/distribution/explain',
    {
      bodyLimit: d.EXPLAIN_LIMIT,
      onRequest: refuseUnknown,
      schema: {
        tags: ['between agents'],
        summary: 'Where pages of a domain stand at this host, by tag; for hosts of that domain',
        body: d.explainQuestion,
        response: { 200: d.tagsExplained, ...failure },
      },
    },
    (request) => {
      const { domain, tags, likelihood } = request.body;
      return need().explainTags(domain, Buffer.from(tags, 'base64'), likelihood, senderOf(request));
    },
  );
}

function addOperatorRoutes(app: TypedApp, need: () => DistributionService): void {
  const tags = ['distribution'];
  const response = { 200: d.distributionInfo, ...failure };
  app.get(
    '/v1/distribution',
    { schema: { tags, summary: 'What is brought, at what rate, and what it was worth', response } },
    () => need().status(),
  );
  app.post(
    '/v1/distribution/pause',
    { schema: { tags, summary: 'Bring nothing more, also after a restart', response } },
    () => need().pause(),
  );
  app.post('/v1/distribution/resume', { schema: { tags, summary: 'Bring pages again', response } }, () =>
    need().resume(),
  );
  app.post(
    '/v1/distribution/rates',
    { schema: { tags, summary: 'Set how fast pages are brought; outlives a restart', body: d.ratesWanted, response } },
    (request) => need().setRates(request.body),
  );
  app.post(
    '/v1/distribution/budget',
    {
      schema: {
        tags,
        summary: 'Set how much of the cache brought pages may take; outlives a restart',
        body: d.budgetBody,
        response,
      },
    },
    (request) => need().setBudget(request.body.bytes),
  );
  app.get(
    '/v1/distribution/guests/:name',
    {
      schema: {
        tags,
        summary: 'Which pages of a guest other hosts have, which they will bring, and why not the others',
        params: z.object({ name: guestName }),
        response: { 200: d.explainedGuest, ...failure },
      },
    },
    (request) => need().explain(request.params.name),
  );
  app.delete(
    '/v1/distribution/directories/:name',
    {
      schema: {
        tags,
        summary: 'Empty the directory of a domain: its hosts tell it all anew',
        params: z.object({ name: domainName }),
        response: { 204: nothing, ...failure },
      },
    },
    async (request, reply) => {
      await need().emptyDirectory(request.params.name);
      return reply.code(204).send(null);
    },
  );
}

function addPlanRoutes(app: TypedApp, need: () => DistributionService): void {
  const tags = ['plans'];
  const response = { 200: d.guestPlans, ...failure };
  app.get('/v1/plans', { schema: { tags, summary: 'Plans in force in the domains of this host', response } }, () =>
    need().plans(),
  );
  app.post(
    '/v1/plans/evacuate',
    { schema: { tags, summary: 'The guests of a host will leave it', body: d.evacuatePlanBody, response } },
    ({ body: { host, forMs, domain } }) => need().evacuate(host, forMs, domain),
  );
  app.post(
    '/v1/plans/affinity',
    { schema: { tags, summary: 'A guest will go to one of these hosts', body: d.affinityPlanBody, response } },
    ({ body: { guest, hosts, forMs, domain } }) => need().affinity(guest, hosts, forMs, domain),
  );
  app.post(
    '/v1/plans/withdraw',
    {
      schema: {
        tags,
        summary: 'Take a plan back',
        body: d.withdrawPlanBody,
        response: { 200: d.withdrawnPlans, ...failure },
      },
    },
    ({ body: { about, domain } }) => need().withdraw(about, domain),
  );
}

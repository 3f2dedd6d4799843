/** The routes of the evacuation: there is one at a time, so it has no name. */
import type { AgentService } from '../service.ts';
import type { EventStreams } from './events.ts';
import { evacuateRequest, evacuationInfo, stopBody } from './evacuation-schemas.ts';
import type { TypedApp } from './routes.ts';
import { errorJson } from './schemas.ts';

const tags = ['evacuation'];
const failure = { '4xx': errorJson, '5xx': errorJson };

export function addEvacuationRoutes(app: TypedApp, service: AgentService, events: EventStreams): void {
  app.post(
    '/v1/evacuation',
    {
      schema: {
        tags,
        summary: 'Move all guests to other hosts; answers once it has begun',
        body: evacuateRequest,
        response: { 202: evacuationInfo, ...failure },
      },
    },
    async (request, reply) => reply.code(202).send(await service.evacuate(request.body)),
  );
  app.post(
    '/v1/evacuation/plan',
    {
      schema: {
        tags,
        summary: 'Who would go where, in which order, and what it would cost; nothing is done',
        body: evacuateRequest,
        response: { 200: evacuationInfo, ...failure },
      },
    },
    (request) => service.planEvacuation(request.body),
  );
  app.get(
    '/v1/evacuation',
    {
      schema: {
        tags,
        summary: 'The evacuation that is under way, or the last one since the agent started',
        response: { 200: evacuationInfo, ...failure },
      },
    },
    () => service.showEvacuation(),
  );
  app.get(
    '/v1/evacuation/events',
    {
      schema: {
        tags,
        summary: 'The same now and as it goes on, one JSON object a line, until it ends',
        response: {
          200: { description: 'Lines', content: { 'application/x-ndjson': { schema: evacuationInfo } } },
          ...failure,
        },
      },
    },
    (_request, reply) => {
      // that there is none must be said here, while there is still a status to say so
      service.showEvacuation();
      events.send(reply, evacuationInfo, (signal) => service.watchEvacuation(signal));
    },
  );
  app.post(
    '/v1/evacuation/stop',
    {
      schema: {
        tags,
        summary: 'Begin with no further guest',
        body: stopBody,
        response: { 200: evacuationInfo, ...failure },
      },
    },
    (request) => service.stopEvacuation(request.body.cancel),
  );
}

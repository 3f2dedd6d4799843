/** Snapshots that other hosts of a domain get by tag. */
import { z } from 'zod';
import type { AgentService } from '../service.ts';
import type { TypedApp } from './routes.ts';
import * as s from './schemas.ts';

const failure = { '4xx': s.errorJson, '5xx': s.errorJson };
const nothing = z.null().meta({ description: 'Done.' });

export function addSnapshotRoutes(app: TypedApp, service: AgentService): void {
  const tags = ['snapshots'];
  app.get(
    '/v1/snapshots',
    {
      schema: {
        tags,
        summary: 'Snapshots that this host shares',
        response: { 200: z.array(s.snapshotInfo), ...failure },
      },
    },
    () => service.listSnapshots(),
  );
  app.post(
    '/v1/snapshots',
    {
      schema: {
        tags,
        summary: 'Share a memory file with the hosts of a domain; answers when all of it is tagged',
        body: s.snapshotRequest,
        response: { 200: s.snapshotInfo, ...failure },
      },
    },
    (request) => service.shareSnapshot(request.body),
  );
  app.delete(
    '/v1/snapshots',
    {
      schema: {
        tags,
        summary: 'Share it no more',
        querystring: s.snapshotFile,
        response: { 204: nothing, ...failure },
      },
    },
    async (request, reply) => {
      await service.unshareSnapshot(request.query.file);
      return reply.code(204).send(null);
    },
  );
}

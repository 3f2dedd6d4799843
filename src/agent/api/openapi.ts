/** The OpenAPI document by itself, without an agent. */
import type { AgentService } from '../service.ts';
import { buildApi } from './app.ts';

/** What `GET /v1/openapi.json` answers, as text for docs/openapi.json. */
export async function openapiText(): Promise<string> {
  // no route is called: the document comes from their schemas alone
  const app = buildApi({} as AgentService);
  try {
    await app.ready();
    return `${JSON.stringify(app.swagger(), null, 2)}\n`;
  } finally {
    await app.close();
  }
}

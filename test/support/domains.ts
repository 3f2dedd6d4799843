/** Domains of the agents of a test: made at one, granted to the others by their control sockets. */
import type { TestAgent } from './cluster.ts';

export async function share(domain: string, home: TestAgent, ...others: TestAgent[]): Promise<void> {
  await home.client.createDomain(domain);
  for (const { control } of others) await home.client.grantDomain(domain, `unix:${control}`);
}

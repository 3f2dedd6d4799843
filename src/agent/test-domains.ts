/**
 * Domains from the environment, for tests: `PAGETIDE_TEST_DOMAINS` holds a JSON object of names and secrets (64 hex digits).
 * Stands where the agent's own store of domains belongs.
 */
import { createHash } from 'node:crypto';
import { noDomains, type Domain, type Domains } from '../migration/domains.ts';
import { DomainKey } from '../pages/tags.ts';

export const TEST_DOMAINS = 'PAGETIDE_TEST_DOMAINS';

export function testDomains(env: NodeJS.ProcessEnv): Domains {
  const text = env[TEST_DOMAINS];
  if (text === undefined) return noDomains;
  const secrets = JSON.parse(text) as Record<string, string>;
  return {
    get: (name): Domain | undefined => {
      const hex = Object.hasOwn(secrets, name) ? secrets[name] : undefined;
      if (hex === undefined) return undefined;
      const secret = Buffer.from(hex, 'hex');
      return {
        name,
        id: createHash('sha256').update(secret).digest().readUInt32LE(0),
        openKey: () => new DomainKey(secret),
      };
    },
    onRemoved: () => undefined,
  };
}

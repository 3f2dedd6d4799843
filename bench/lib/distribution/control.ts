/** What the experiment asks of an agent's distribution: a part of {@link AgentClient}. */
import { PagetideError } from '../../../src/errors.ts';
import type { AgentClient } from '../../../src/agent/api/client.ts';

export interface DistributionState {
  state: string;
  heldBytes: number;
  queuedPages: number;
  lastPlan: { at: number } | null;
  domains: { spentBytes: number; savedBytes: number }[];
}

export interface DistributionControl {
  distribution(): Promise<DistributionState>;
  pauseDistribution(): Promise<unknown>;
  resumeDistribution(): Promise<unknown>;
  setDistributionRates(rates: { average: number; peak: number }): Promise<unknown>;
  setDistributionBudget(bytes: number): Promise<unknown>;
  planAffinity(guest: string, hosts: string[], forMs: number): Promise<unknown>;
  withdrawPlan(about: { kind: 'affinity'; guest: string }): Promise<unknown>;
}

/** @throws PagetideError `PT_UNSUPPORTED_HOST` where this agent's client has no distribution */
export function controlOf(client: AgentClient): DistributionControl {
  if (!('distribution' in client)) throw new PagetideError('PT_UNSUPPORTED_HOST', 'these agents do not distribute');
  return client as AgentClient & DistributionControl;
}

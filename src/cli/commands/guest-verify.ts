import type { Command } from 'commander';
import { PagetideError } from '../../errors.ts';
import { refuseRest, type Context } from '../context.ts';
import { guestName } from '../options.ts';

/** `pagetide guest verify NAME` */
export function addGuestVerify(guest: Command, context: () => Context): void {
  guest
    .command('verify')
    .description('let a guest check every frame of its memory; fails where one is wrong or the guest cannot')
    .argument('<name>', 'the guest', guestName)
    .addHelpText('after', '\nExample:\n  pagetide guest verify web1')
    .action(async (name: string) => {
      const cli = context();
      refuseRest(cli);
      const client = await cli.client();
      const result = await client.verifyGuest(name);
      if (result === null) {
        throw new PagetideError('PT_GUEST_STATE', `${name} cannot check itself`, {
          hint: 'Embedded guests can, and QEMU guests that were attached or run with --check.',
        });
      }
      cli.result(result, () => {
        return result.ok
          ? `${name}: ${result.checked} frames checked, all right`
          : `${name}: ${result.checked} frames checked`;
      });
      if (!result.ok) {
        const some = result.bad.slice(0, 8).join(', ');
        const detail = result.detail === undefined ? '' : `: ${result.detail}`;
        throw new PagetideError('PT_VERIFY_FAILED', `${name} has bad frames (${some})${detail}`);
      }
    });
}

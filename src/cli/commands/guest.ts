import type { Command } from 'commander';
import type { Context } from '../context.ts';
import { addGuestAttach } from './guest-attach.ts';
import { addGuestList } from './guest-list.ts';
import { addGuestRemove } from './guest-remove.ts';
import { addGuestRun } from './guest-run.ts';
import { addGuestShow } from './guest-show.ts';
import { addGuestVerify } from './guest-verify.ts';

/** `pagetide guest …` */
export function addGuest(program: Command, context: () => Context): void {
  const guest = program
    .command('guest')
    .description('guests of an agent')
    .addHelpText('after', '\nExample:\n  pagetide guest run web1 --driver embedded --memory 256M');
  addGuestAttach(guest, context);
  addGuestRun(guest, context);
  addGuestList(guest, context);
  addGuestShow(guest, context);
  addGuestVerify(guest, context);
  addGuestRemove(guest, context);
}

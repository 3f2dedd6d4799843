/* Pages that a virtio disk writes, and that the guest checks with its others. */
#ifndef PAGETIDE_DISK_H
#define PAGETIDE_DISK_H

#include <stdint.h>

#include "guest.h"

/* Items of the check from here on are pages that the disk writes. */
#define DISK_ITEMS ((uint64_t)1 << 32)

/* Waits for /dev/vda and starts reading, into as many pages as pagetide.disk= says; 0, or no such word: there is no
 * disk. */
void start_disk(void);
/* Blocks that were read. */
uint64_t disk_reads(void);
void verify_disk(struct verdict*);

#endif

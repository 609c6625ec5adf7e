/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * Numbers are kept in pages of 512 bits, and the pages that have a member
 * in a hash table with open addressing and linear probing, never more than
 * half full.  So a member that is alone takes some 130 bytes: who chooses
 * the numbers by entries of 8 bytes makes us use 16 times as much, not more.
 *
 * A page that loses its last member is freed; the entries behind it are
 * moved up, so that a search may end at the first free slot.
 */

#include <config.h>

#include <stdlib.h>

#include "utils/bitmap.h"

#define PAGE_BITS 512
#define WORD_BITS 64
#define FIRST_SLOTS 16

struct bitmap_page {
  uint64_t number;              /* of the page: members / PAGE_BITS */
  unsigned members;
  uint64_t words[PAGE_BITS / WORD_BITS];
};

/* Where the search for a page begins.  Multiplying spreads neighbours;
 * the upper half of the product is the better mixed one.
 */
static size_t
home_slot (const struct bitmap *b, uint64_t number)
{
  return ((number * UINT64_C (0x9e3779b97f4a7c15)) >> 32) &
    (b->nr_slots - 1);
}

static size_t
next_slot (const struct bitmap *b, size_t slot)
{
  return (slot + 1) & (b->nr_slots - 1);
}

/* The slot that holds a page, or the free one where it belongs.  There
 * must be slots.
 */
static size_t
find_slot (const struct bitmap *b, uint64_t number)
{
  size_t slot = home_slot (b, number);

  while (b->slots[slot] && b->slots[slot]->number != number)
    slot = next_slot (b, slot);
  return slot;
}

static struct bitmap_page *
find_page (const struct bitmap *b, uint64_t number)
{
  if (b->last && b->last->number == number)
    return b->last;
  return b->nr_slots ? b->slots[find_slot (b, number)] : NULL;
}

/* Make room for one more page. */
static int
grow (struct bitmap *b)
{
  struct bitmap old = *b;
  const size_t nr_slots = old.nr_slots ? old.nr_slots * 2 : FIRST_SLOTS;

  if (old.nr_pages < old.nr_slots / 2)
    return 0;
  b->slots = calloc (nr_slots, sizeof *b->slots);
  if (b->slots == NULL) {
    b->slots = old.slots;
    return -1;
  }
  b->nr_slots = nr_slots;
  for (size_t i = 0; i < old.nr_slots; ++i)
    if (old.slots[i])
      b->slots[find_slot (b, old.slots[i]->number)] = old.slots[i];
  free (old.slots);
  return 0;
}

static struct bitmap_page *
add_page (struct bitmap *b, uint64_t number)
{
  struct bitmap_page *page;

  if (grow (b) == -1)
    return NULL;
  page = calloc (1, sizeof *page);
  if (page == NULL)
    return NULL;
  page->number = number;
  b->slots[find_slot (b, number)] = page;
  b->nr_pages++;
  return page;
}

/* Free a page, and move those behind it up that were pushed past its
 * slot by it: all for which the slot lies on the way from home.
 */
static void
remove_page (struct bitmap *b, uint64_t number)
{
  size_t hole = find_slot (b, number);

  free (b->slots[hole]);
  b->slots[hole] = NULL;
  b->nr_pages--;
  b->last = NULL;

  for (size_t i = next_slot (b, hole); b->slots[i]; i = next_slot (b, i)) {
    const size_t home = home_slot (b, b->slots[i]->number);
    const size_t mask = b->nr_slots - 1;

    if (((i - home) & mask) >= ((i - hole) & mask)) {
      b->slots[hole] = b->slots[i];
      b->slots[i] = NULL;
      hole = i;
    }
  }
}

int
bitmap_add (struct bitmap *b, uint64_t n)
{
  const uint64_t mask = UINT64_C (1) << (n % WORD_BITS);
  struct bitmap_page *page = find_page (b, n / PAGE_BITS);
  uint64_t *word;

  if (page == NULL)
    page = add_page (b, n / PAGE_BITS);
  if (page == NULL)
    return -1;
  b->last = page;

  word = &page->words[n % PAGE_BITS / WORD_BITS];
  if (*word & mask)
    return 1;
  *word |= mask;
  page->members++;
  b->members++;
  return 0;
}

void
bitmap_remove (struct bitmap *b, uint64_t n)
{
  const uint64_t mask = UINT64_C (1) << (n % WORD_BITS);
  struct bitmap_page *page = find_page (b, n / PAGE_BITS);
  uint64_t *word;

  if (page == NULL)
    return;
  word = &page->words[n % PAGE_BITS / WORD_BITS];
  if (!(*word & mask))
    return;
  *word &= ~mask;
  b->members--;
  if (--page->members == 0)
    remove_page (b, page->number);
}

bool
bitmap_has (const struct bitmap *b, uint64_t n)
{
  const struct bitmap_page *page = find_page (b, n / PAGE_BITS);

  return page && (page->words[n % PAGE_BITS / WORD_BITS] >> (n % WORD_BITS) &
                  1);
}

void
bitmap_free (struct bitmap *b)
{
  for (size_t i = 0; i < b->nr_slots; ++i)
    free (b->slots[i]);
  free (b->slots);
  *b = BITMAP_EMPTY;
}

// In the place of what cmake/tuned.py generates: no entries.
#undef HBN_TUNED_ENTRY
#undef HBN_TUNED_KERNEL

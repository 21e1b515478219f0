"""The tuner: finds schedule parameters and run-time thresholds that are faster than the defaults (bench/hbn-tune)."""

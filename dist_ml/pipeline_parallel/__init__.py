"""Pipeline schedules as values, and the executor that runs a rank's part of one."""

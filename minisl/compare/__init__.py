"""Methods side by side on one job: the grid of runs (`grid`), one run (`run`), bytes and speed (`weigh`), the table (`words`)."""

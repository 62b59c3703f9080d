"""What a machine with a GPU is asked, in one call of ten minutes: `python -m benchmarks.gpu`.

what is asked       smoke.py and risky.py (with checks.py), ceilings.py; a file for each op, training.py, measure.py
                    and their order in measurements.py; profile.py (with profiled.py) for Nsight Compute; commands.py
                    for tests and sanitizers (with one_op.py, and as_many_as_fit.py and lost_device.py for pytest)
how it is run       steps.py has the steps and their limits, plan.py prints them; jobs.py runs them in processes.py;
                    worker.py does each task.py there, as long as device.py says that it can; logs.py packs what they
                    print
what comes of it    results.py is the file; entries.py reads it, for page.py and figures.py
"""

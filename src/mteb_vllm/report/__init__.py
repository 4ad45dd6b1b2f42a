"""What was computed, shown.

one_run         a single run: prompts, scores, failures
whole           a whole report over runs: read, compared, shown and written
reading         finds runs in folders
run_records       those of this program
result_folders    results of others, in mteb's layout
points          what is known of a run
comparison      a set of runs, compared; no input, no output
columns           in what they differ, and what they share
speeds            how fast their engines worked
effects           what each setting changes
answer          the answer in words
failed          failures, those that are alike together
tables          a comparison on the terminal, as Markdown and as CSV
page            the same as one HTML page
plots           the same as pictures
"""

"""What was computed, shown.

one_run         a single run: prompts, scores, failures
throughput        what a throughput run measured
whole           a whole report over runs: read, compared, shown and written
reading         finds runs in folders
run_records       those of this program
result_folders    results of others, in mteb's layout
points          what is known of a run
measured          of throughput and parity
comparison      a set of runs, compared; no input, no output
columns           in what they differ, and what they share
speeds            how fast their engines worked
curves            what of throughput is drawn
effects           what each setting changes
answer          the answer in words
answer_measured   of throughput and parity
words             points and figures in words
failed          failures, those that are alike together
tables          a comparison on the terminal, as Markdown and as CSV
sections          the parts of report.md below its table
measured_columns  the columns of throughput and parity, of every table
page            the same as one HTML page
page_measured     throughput and parity on it
plots           the same as pictures
throughput_plot   latency against throughput, and the roof
reference_plot    the difference to a reference against speed
pictures          what they are drawn on and with
"""

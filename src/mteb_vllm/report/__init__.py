"""Reports: on the terminal, as Markdown, as CSV, as one HTML page, and as charts.

One run:
    one_run          prompts before a run; its scores, figures and failures after it
    throughput       the tables of a throughput run
    parity           the tables and the verdict of a parity run

Several runs, compared:
    build            the whole report: loads, compares, shows and writes
    loading          finds runs and results in folders
    run_records      reads the records of this program's runs
    result_folders   reads folders of results in mteb's layout
    points           a run as it is compared: settings, scores, throughput, parity
    settings         the settings in which runs differ, and those that they share
    speeds           how fast engines worked, over texts that can be compared
    comparison       means, differences, the best and the fastest point, and the effect of each setting
    answer           the comparison in sentences
    columns          the columns of every table: name, unit, format, and the field that each shows
    tables           the comparison on the terminal, as Markdown and as CSV
    page             the comparison as an HTML page
    charts           each chart, as Vega-Lite, for the page and for the PNG files

For all of these:
    formatting       figures, names and settings in words, and tables in Markdown
"""

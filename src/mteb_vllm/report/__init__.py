"""Reports on the terminal, as Markdown, as CSV, as an HTML page, and as charts.

One run:
    one_run          its prompts before it starts; its scores and failures when it has ended
    throughput       the tables of a throughput run
    parity           the tables and the verdict of a parity run

A comparison of several runs:
    build            builds the report: loads, compares, shows and writes
    loading          finds runs and results in folders
    run_records      reads the records of this program's runs
    result_folders   reads folders of results in mteb's layout
    points           a run as a comparison sees it: settings, scores, throughput, parity
    settings         the settings in which runs differ, and those that they share
    speeds           speeds of engines, over texts that can be compared
    comparison       means, differences, the best and the fastest point, effects of settings, and the order of rows
    answer           the conclusions in sentences
    columns          the columns of every table: name, unit, format and value
    tables           the comparison on the terminal, as Markdown and as CSV
    page             the comparison as an HTML page

Both:
    header           titles, dates, devices, versions, and the command of the recommended configuration
    formatting       formats of numbers, names, settings and Markdown tables
    charts           each chart as a Vega-Lite specification, for the page and for the PNG files
"""

# fish completion for tidegate(1)

set -l commands demo check health help
complete -c tidegate -f
complete -c tidegate -n "not __fish_seen_subcommand_from $commands" -a demo -d 'Try it without Redis or PostgreSQL'
complete -c tidegate -n "not __fish_seen_subcommand_from $commands" -a check -d 'Try everything that the configuration names'
complete -c tidegate -n "not __fish_seen_subcommand_from $commands" -a health -d 'Ask the running server whether it lives'
complete -c tidegate -n "not __fish_seen_subcommand_from $commands" -a help -d 'Print help'
complete -c tidegate -n "not __fish_seen_subcommand_from $commands" -l no-database -d 'Serve without PostgreSQL: no access control'
complete -c tidegate -n "not __fish_seen_subcommand_from $commands" -s V -l version -d 'Print the version'
complete -c tidegate -s h -l help -d 'Print help'
complete -c tidegate -n '__fish_seen_subcommand_from demo' -l port -x -d 'Port of the page and the streams'
complete -c tidegate -n '__fish_seen_subcommand_from check' -l no-database -d 'Without PostgreSQL'
complete -c tidegate -n '__fish_seen_subcommand_from health' -l ready -d 'Ask for Redis and PostgreSQL too'

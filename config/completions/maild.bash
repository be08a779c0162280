# bash completion for maild; written by `make man`
_maild() {
    local path='' word known=''
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case "$word" in
            demo|account|add|list|passwd|remove|login|check|doctor|sync|run|reload|status|approve|outbox|sendmail) path="${path:+$path }$word" ;;
        esac
    done
    case "$path" in
        '') known='demo account login check doctor sync run reload status approve outbox sendmail --help --version --verbose --config' ;;
        'demo') known='--help --keep' ;;
        'account') known='add list passwd remove --help' ;;
        'account add') known='--help --name --maildir --user --pop3 --no-test --yes --imap-host --imap-port --imap-tls --pop3-host --pop3-port --pop3-tls --smtp-host --smtp-port --smtp-tls --ca-file --password-file --password-command --password-keyring --password-credential --oauth2 --password-stdin --client-id --client-secret-file' ;;
        'account list') known='--help --json' ;;
        'account passwd') known='--help --smtp --password-stdin --no-test' ;;
        'account remove') known='--help --yes' ;;
        'login') known='--help --device --browser' ;;
        'check') known='--help --json' ;;
        'doctor') known='--help --json' ;;
        'sync') known='--help --dry-run --send --json' ;;
        'run') known='--help' ;;
        'reload') known='--help' ;;
        'status') known='--help --json --watch' ;;
        'approve') known='--help' ;;
        'outbox') known='--help --json' ;;
        'sendmail') known='' ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$known" -- "${COMP_WORDS[COMP_CWORD]}")
}
complete -o default -F _maild maild

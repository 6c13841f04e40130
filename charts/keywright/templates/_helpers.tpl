{{/* Labels of every object, for the component given as the second item of the list. */}}
{{- define "keywright.labels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: keywright
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- with index . 1 }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{/* The name of a cluster-wide object. It holds the namespace, as one cluster can have several installations. */}}
{{- define "keywright.clusterName" -}}
{{- $root := index . 0 -}}
{{ printf "%s:%s:%s" $root.Release.Name $root.Release.Namespace (index . 1) }}
{{- end }}
